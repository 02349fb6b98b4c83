// The page. It shows what the control socket answers: the status and the events by server-sent
// events, the rest by asking. Whatever comes from the host is set as text, since names, messages and
// reasons are written by plugins and their clients.

// ---- Text ------------------------------------------------------------------------------------

/** Text that can neither steer the page's direction of writing nor hide in it. */
const plain = (text) => String(text).replace(/[\u0000-\u0009\u000b-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g,
  (letter) => letter === '\t' ? ' ' : `\\u{${letter.codePointAt(0).toString(16)}}`);
const count = (number, noun) => number === 1 ? `1 ${noun}` : `${number} ${noun}s`;
const grouped = (number) => number.toLocaleString('en', { maximumFractionDigits: 1 }).replaceAll(',', ' ');

/** As `human::duration` of the host. */
function duration(ms) {
  const seconds = Math.floor(ms / 1000);
  if (ms < 1) return `${Math.round(ms * 1000)} µs`;
  if (seconds < 1) return `${Math.floor(ms)} ms`;
  if (seconds < 10) return `${(ms / 1000).toFixed(1)} s`;
  if (seconds < 60) return `${seconds} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)}m ${seconds % 60}s`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)}h ${Math.floor(seconds / 60) % 60}m`;
  return `${Math.floor(seconds / 86400)}d ${Math.floor(seconds / 3600) % 24}h`;
}
const age = (ms) => ms < 60000 ? `${Math.floor(ms / 1000)} s` : duration(ms);

function scaled(bytes, step, units) {
  let value = bytes, unit = -1;
  while (value >= step && unit + 1 < units.length) { value /= step; unit += 1; }
  return unit < 0 ? `${bytes} B` : `${value.toFixed(1).replace('.0', step === 1024 ? '' : '.0')} ${units[unit]}`;
}
const fileSize = (bytes) => scaled(bytes, 1000, ['kB', 'MB', 'GB', 'TB']);
const memory = (bytes) => scaled(bytes, 1024, ['KiB', 'MiB', 'GiB', 'TiB']);

function clock(ms) {
  const at = new Date(ms), two = (number) => String(number).padStart(2, '0');
  const time = `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
  if (at.toDateString() === new Date().toDateString()) return time;
  return `${at.getFullYear()}-${two(at.getMonth() + 1)}-${two(at.getDate())} ${time}`;
}

// ---- Elements --------------------------------------------------------------------------------

/** An element as it is to be: `props.key` tells it from its neighbours. */
const h = (tag, props, ...kids) => ({ tag, props: props ?? {}, kids: kids.flat(Infinity).filter((kid) => kid !== null && kid !== undefined && kid !== false) });
const SVG = 'http://www.w3.org/2000/svg';

/** Makes the children of `parent` those of `kids`. What is the same stays, and with it the focus. */
function patch(parent, kids) {
  // What stands in the file makes room.
  if (!parent.shown) parent.replaceChildren();
  const old = [...(parent.shown ?? [])];
  const next = [];
  for (const kid of kids) {
    const isText = typeof kid !== 'object';
    const tag = isText ? '#text' : kid.tag, key = isText ? undefined : kid.props.key;
    const at = old.findIndex((one) => one.tag === tag && one.key === key);
    const one = at >= 0 ? old.splice(at, 1)[0] : { tag, key, props: {} };
    if (isText) {
      const text = plain(kid);
      one.node ??= document.createTextNode('');
      if (one.node.nodeValue !== text) one.node.nodeValue = text;
    } else {
      one.node ??= tag === 'svg' || parent.namespaceURI === SVG ? document.createElementNS(SVG, tag) : document.createElement(tag);
      setProps(one.node, one.props, kid.props);
      one.props = kid.props;
      if (!kid.props.own) patch(one.node, kid.kids);
    }
    next.push(one);
  }
  for (const one of old) one.node.remove();
  next.forEach((one, at) => {
    const there = parent.childNodes[at];
    if (there !== one.node) parent.insertBefore(one.node, there ?? null);
  });
  parent.shown = next;
}

function setProps(node, before, props) {
  for (const name of Object.keys(before)) if (!(name in props)) { if (name.startsWith('on')) node[name] = null; else node.removeAttribute(name); }
  for (const [name, value] of Object.entries(props)) {
    if (name === 'key' || name === 'own' || before[name] === value) continue;
    if (name.startsWith('on')) node[name] = value;
    else if (name === 'width%') node.style.width = `${value}%`;
    else if (value === false || value === null || value === undefined) node.removeAttribute(name);
    else node.setAttribute(name, value === true ? '' : plain(value));
  }
}
const $ = (id) => document.getElementById(id);

// ---- What is known ---------------------------------------------------------------------------

const known = { status: null, who: null, events: [], run: null, lists: {}, shown: null, link: 'waiting' };
const WINDOW = 5 * 60 * 1000, BUCKET = 2000, EVENTS = 400;
/** By app: counters of generations, and what was counted in each bucket of time. */
const samples = new Map();
/** By app and generation: the most that was in flight since it began to drain. */
const peaks = new Map();
/** By app and generation: the version, which events do not name. */
const versions = new Map();
const versionOf = (app, generation) => versions.get(`${app} ${generation}`);

function sample(status) {
  const now = Date.now(), bucket = Math.floor(now / BUCKET);
  for (const app of status.apps) {
    const first = !samples.has(app.name);
    const kept = samples.get(app.name) ?? { since: now, before: new Map(), buckets: new Map() };
    samples.set(app.name, kept);
    const counted = kept.buckets.get(bucket) ?? { requests: 0, errors: 0 };
    for (const one of app.generations) {
      const was = kept.before.get(one.generation) ?? (first ? one : { requests: 0, server_errors: 0 });
      counted.requests += Math.max(0, one.requests - was.requests);
      counted.errors += Math.max(0, one.server_errors - was.server_errors);
      kept.before.set(one.generation, { requests: one.requests, server_errors: one.server_errors });
      const place = `${app.name} ${one.generation}`;
      versions.set(place, one.version);
      if (one.state === 'draining') peaks.set(place, Math.max(peaks.get(place) ?? 0, one.in_flight));
    }
    kept.buckets.set(bucket, counted);
    for (const old of kept.buckets.keys()) if (old < bucket - WINDOW / BUCKET - 20) kept.buckets.delete(old);
  }
}

/** Counts a second in `from..to`, as far as the page was there. */
function rate(app, from, to, what) {
  const kept = samples.get(app);
  if (!kept) return null;
  const first = Math.max(Math.ceil(kept.since / BUCKET), Math.ceil(from / BUCKET)), last = Math.floor(to / BUCKET);
  if (last <= first) return null;
  let sum = 0;
  for (let at = first; at < last; at += 1) sum += kept.buckets.get(at)?.[what] ?? 0;
  return sum * 1000 / ((last - first) * BUCKET);
}

const appNow = () => known.status?.apps.find((app) => app.name === known.shown);
const eventsOf = (app) => known.events.filter((event) => event.app === app);
const swapsOf = (app) => eventsOf(app).filter((event) => event.kind === 'active');

// ---- The host --------------------------------------------------------------------------------

let stream = null, heard = 0;
const QUIET = 15000;

function listen() {
  stream?.close();
  stream = new EventSource('events');
  heard = Date.now();
  stream.addEventListener('who', (message) => { known.who = JSON.parse(message.data); known.link = 'live'; heard = Date.now(); later(); });
  stream.addEventListener('status', (message) => { known.status = JSON.parse(message.data); known.link = 'live'; heard = Date.now(); sample(known.status); later(); });
  stream.addEventListener('event', (message) => {
    const run = message.lastEventId.slice(0, message.lastEventId.lastIndexOf('-'));
    const event = JSON.parse(message.data);
    if (run !== known.run) { known.run = run; known.events = []; }
    if (known.events.some((one) => one.seq === event.seq)) return;
    known.events.push(event);
    known.events.splice(0, known.events.length - EVENTS);
    if (Date.now() - event.at_ms < 10000) speak(`${event.app ?? 'host'}: ${event.message}`);
    if (event.app === known.shown || !event.app) { clearTimeout(listen.soon); listen.soon = setTimeout(refresh, 300); }
    later();
  });
  stream.onerror = () => {
    known.link = 'lost';
    later();
    // The browser tries again by itself, unless the host has refused.
    if (stream.readyState === EventSource.CLOSED) setTimeout(again, 2000);
  };
}

/** The host says something every few seconds: a connection that is silent for longer is none. */
function watch() {
  if (known.link !== 'live' || Date.now() - heard < QUIET) return;
  known.link = 'lost';
  stream.close();
  again();
}

/** Whether the host is there, and still knows this page. */
async function again() {
  try {
    const answer = await fetch('v1/status', { signal: AbortSignal.timeout(QUIET) });
    if (answer.status === 401 || answer.status === 403) { known.link = answer.status === 401 ? 'ended' : 'denied'; later(); return; }
  } catch { setTimeout(again, 2000); return; }
  listen();
}

/** Says something to who listens to the page. */
function speak(text) {
  const line = document.createElement('p');
  line.textContent = plain(text);
  $('said').append(line);
  while ($('said').childElementCount > 20) $('said').firstElementChild.remove();
}

const LISTS = [['jobs', 'v1/jobs?limit=100&app='], ['schedules', 'v1/schedules?app='], ['leases', 'v1/leases?app='],
  ['tenants', 'v1/tenants?app='], ['history', 'v1/history?app='], ['shadows', 'v1/shadow?app=']];

/** Asks for what the stream does not bring. */
async function refresh() {
  const app = known.shown;
  if (!app || known.link !== 'live' || document.hidden) return;
  const answers = await Promise.allSettled(LISTS.map(async ([name, path]) => {
    const answer = await fetch(path + encodeURIComponent(app));
    return [name, answer.ok ? (await answer.json())[name] : []];
  }));
  if (app !== known.shown) return;
  const lists = { app };
  for (const one of answers) if (one.status === 'fulfilled') lists[one.value[0]] = one.value[1];
  for (const one of lists.history ?? []) if (one.generation && one.version) versions.set(`${app} ${one.generation}`, one.version);
  known.lists = { ...(known.lists.app === app ? known.lists : {}), ...lists };
  later();
}

// ---- Parts of the page -----------------------------------------------------------------------

const TONES = { serving: 'good', active: 'good', deploying: 'way', draining: 'way', started: 'way', retained: 'bad', stopped: 'way',
  done: 'good', unchanged: 'good', staged: 'way', failed: 'bad', rejected: 'bad', unhealthy: 'bad', rolled_back: 'bad', deadline_passed: 'way',
  conflict: 'way', denied: 'bad', running: 'good', dead: 'bad', waiting: 'way' };
const badge = (word) => h('span', { class: `badge ${TONES[word] ?? ''}` }, String(word).replaceAll('_', ' '));
const card = (title, ...kids) => h('section', { class: 'card', key: title, 'aria-label': title }, h('h3', {}, title), kids);
const time = (ms) => h('time', { datetime: new Date(ms).toISOString() }, clock(ms));

/** A table. Columns: title, classes, cell of a row. The first one names the row. */
function table(caption, columns, rows, key) {
  return h('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': `${caption}, table` },
    h('table', {},
      h('caption', { class: 'unseen' }, caption),
      h('thead', {}, h('tr', {}, columns.map(([title, style]) => h('th', { scope: 'col', class: style ?? '' }, title || h('span', { class: 'unseen' }, 'Action'))))),
      h('tbody', {}, rows.map((row, at) => h('tr', { key: key ? key(row) : at },
        columns.map(([, style, cell], column) => h(column === 0 ? 'th' : 'td', { class: style ?? '', ...(column === 0 ? { scope: 'row' } : {}) }, cell(row))))))));
}
const button = (label, onclick, style, about) => known.who?.operates
  ? h('button', { key: label, type: 'button', class: style ?? '', onclick, ...(about ? { 'aria-label': `${label} ${about}` } : {}) }, label) : null;

function top() {
  const { status, who } = known;
  const host = status?.host;
  const words = { waiting: 'connecting', live: 'connected', lost: 'connection lost', ended: 'session ended', denied: 'not allowed' };
  patch($('top'), [
    h('h1', {}, host ? `handover ${host.version}` : 'handover'),
    host && h('span', { class: 'quiet' }, `pid ${host.pid}, up ${age(host.uptime_ms)}, ${fileSize(host.rss_bytes)}`),
    host && h('span', { class: 'quiet' }, host.listen.join(' ')),
    h('span', { class: 'end' },
      h('span', { class: `dot ${known.link === 'live' ? '' : 'lost'}` }, words[known.link]),
      who && h('span', { class: 'quiet' }, who.operates ? who.user : `${who.user}, who may look and not operate`),
      who && h('button', { type: 'button', class: 'small', onclick: endSession }, 'End session')),
  ].filter(Boolean));
  const banner = { lost: 'The connection to the host is lost. What is shown is what was last known. The page tries again; if the host was started anew, `handover dashboard` prints a new link.',
    ended: 'The session has ended, or the host was started again. `handover dashboard` prints a new link.',
    denied: 'You may not look at this host any more: [control] does not name you.' }[known.link];
  patch($('banner'), banner ? [banner] : []);
}

function apps() {
  const all = known.status?.apps ?? [];
  const link = (to, name, end) => h('li', { key: to }, h('a', { href: to, 'aria-current': to === hashOf(known.shown) ? 'page' : null }, h('bdi', {}, name), end));
  patch($('apps'), [h('ul', {}, all.map((app) => link(hashOf(app.name), app.name, badge(app.state))), link('#', 'Host', null))]);
}
const hashOf = (app) => app ? `#${encodeURIComponent(app)}` : '#';

/** What there is to say of an app: the sentences of `handover status`. */
function notes(app) {
  const said = [];
  const say = (text, tone) => said.push([text, tone ?? '']);
  if (app.listening?.length) say(`listens by itself at ${app.listening.join(', ')}`);
  if (app.operation) say(`${app.operation.id} (${app.operation.what}) is under way`, 'way');
  if (app.queue?.length) say(`in the queue: ${app.queue.map((one) => `${one.id} (${one.what})`).join(', ')}`, 'way');
  if (app.staged) say(`staged ${app.staged.version} (${app.staged.artifact.slice(0, 12)}): \`handover reload ${app.name}\` activates it`, 'way');
  if (app.not_durable) say(`not on the disk yet: ${app.not_durable}`, 'bad');
  if (app.stopped !== undefined && app.stopped !== null) say(`stopped${app.stopped ? `, and clients are told: ${app.stopped}` : ''}`, 'way');
  if (app.frozen) say(app.frozen, 'way');
  if (app.held) say(`one version hands over to the next: ${count(app.held.waiting, 'request')} held, for ${duration(app.held.max_wait_ms)} at the longest`, 'way');
  if (app.paused) say(`paused: ${count(app.paused.waiting, 'request')} wait, for ${duration(app.paused.max_wait_ms)} at the longest`, 'way');
  const limits = app.limits;
  if (limits) {
    const parts = [];
    if (limits.max_concurrent) {
      parts.push(`${limits.running} of ${limits.max_concurrent} running`);
      if (limits.queue) parts.push(`${limits.waiting} of ${limits.queue} waiting`);
      parts.push(`${limits.refused} refused (503)`);
    }
    if (limits.request_timeout_ms) parts.push(`${limits.timed_out} over ${duration(limits.request_timeout_ms)} (504)`);
    if (parts.length) say(`limits: ${parts.join(', ')}`, limits.refused + limits.timed_out ? 'way' : '');
  }
  for (const one of [...app.generations].reverse()) {
    const id = `generation ${one.generation}`;
    if (one.label) say(`${id} answers to \`${one.label}\`${one.ends_in_ms ? ` for ${age(one.ends_in_ms)} more` : ''}`);
    if (one.staying_for) say(`${id} stays for its tenants, who have ${one.staying_for} in flight there`, 'way');
    if (one.panics) say(`${id}: ${count(one.panics, 'panic')}`, 'bad');
    if (one.stalls) say(`${id}: ${count(one.stalls, 'stall')}, requests that held a worker for too long`, 'bad');
    if (one.retained_because) say(`${id} stays mapped: ${one.retained_because}`, 'bad');
  }
  return said.length ? h('ul', { class: 'notes' }, said.map(([text, tone]) => h('li', { class: tone }, text))) : null;
}

function head(app) {
  const active = app.active, canary = app.canary;
  const labelled = app.generations.filter((one) => one.label && one.state !== 'draining');
  const stopped = app.stopped !== undefined && app.stopped !== null;
  return h('section', { class: 'card', key: 'head', 'aria-label': 'App' },
    h('div', { class: 'head' }, h('h2', {}, h('bdi', {}, app.name)), badge(app.state)),
    h('p', { class: 'sub' },
      h('span', {}, active ? `${active.version}, generation ${active.generation}, ${active.artifact.slice(0, 12)}` : 'nothing answers'),
      app.routes.length > 0 && h('span', {}, `at ${app.routes.join(', ')}`)),
    known.who?.operates && h('div', { class: 'actions' },
      button('Deploy', () => askDeploy(app.name), 'main'),
      labelled.map((one) => [
        button(`Promote ${one.version}`, () => ask('promote', app, { label: one.label, what: `${one.version} (\`${one.label}\`)` })),
        button(`Abort ${one.version}`, () => ask('abort', app, { label: one.label, what: `${one.version} (\`${one.label}\`)` }))]),
      canary && button(canary.paused ? 'Resume trial' : 'Pause trial', () => ask(canary.paused ? 'canary-resume' : 'canary-pause', app)),
      (active || stopped) && button('Roll back', () => ask('rollback', app)),
      active && button('Restart', () => ask('restart', app)),
      app.paused ? button('Resume', () => ask('resume', app)) : active && button('Pause', () => ask('pause', app)),
      stopped ? button('Start', () => ask('start', app)) : active && button('Stop', () => ask('stop', app))),
    notes(app));
}

function generations(app) {
  const active = app.active?.generation;
  const rows = [...app.generations].sort((a, b) => (b.generation === active) - (a.generation === active) || b.generation - a.generation);
  if (!rows.length) return null;
  const flight = (one) => {
    const most = peaks.get(`${app.name} ${one.generation}`);
    if (one.state !== 'draining' || !most) return grouped(one.in_flight);
    return [grouped(one.in_flight), h('span', { class: 'drain', role: 'img', 'aria-label': `${one.in_flight} of ${most} left` }, h('i', { 'width%': 100 * one.in_flight / most }))];
  };
  return card('Generations', table('Generations', [
    ['Gen', 'n', (one) => String(one.generation)],
    ['Version', '', (one) => one.version],
    ['State', 's', (one) => badge(one.state)],
    ['Label', 'wide', (one) => one.label ?? ''],
    ['In flight', 'n', flight],
    ['Jobs', 'n wide', (one) => grouped(one.jobs)],
    ['Requests', 'n', (one) => grouped(one.requests)],
    ['5xx', 'n wide', (one) => grouped(one.server_errors)],
    ['Panics', 'n wide', (one) => grouped(one.panics)],
    ['Age', 'n wide', (one) => age(one.age_ms)],
  ], rows, (one) => one.generation));
}

function holders(app) {
  const rows = app.generations.flatMap((one) => [
    ...(one.holders ?? []),
    ...(one.work ?? []).filter((work) => work.kind !== 'task').map((work) => ({ ...work, generation: one.generation })),
  ]).sort((a, b) => b.age_ms - a.age_ms).slice(0, 100);
  if (!rows.length) return null;
  return card('What holds generations, oldest first', table('Holders', [
    ['Age', 'n', (one) => age(one.age_ms)],
    ['Gen', 'n', (one) => String(one.generation)],
    ['Kind', 'wide', (one) => one.kind],
    ['What', 'l', (one) => h('span', { class: 'code' }, one.name)],
    ['Client', 's wide', (one) => one.client ?? ''],
    ['Tenant', 'wide', (one) => one.tenant ?? ''],
    ['', 'b', (one) => one.id ? button('Cancel', () => askCancel(one.id, `${one.kind} ${one.name}`), 'small', `${one.kind} ${one.name}`) : null],
  ], rows, (one) => one.id ?? `${one.generation} ${one.kind} ${one.name} ${one.tenant}`));
}

function canary(app) {
  const it = app.canary;
  if (!it) return null;
  const against = Math.max(it.failing, it.slow);
  const left = it.paused ? 'paused' : it.inconclusive ? `inconclusive: ${it.canary.requests} of the ${it.min_requests} requests that it takes to go on` : `${age(it.left_ms)} left`;
  const micros = (value) => value === undefined || value === null ? '' : duration(value / 1000);
  return card('Canary',
    h('p', {}, `canary ${it.version} (generation ${it.generation}) gets ${it.percent}% of the requests, step ${it.step} of ${it.steps}, ${left}`),
    table('Canary and live', [
      ['', '', (side) => side[0]],
      ['Requests', 'n', (side) => grouped(side[1].requests)],
      ['Failed', 'n', (side) => grouped(side[1].failed)],
      ['p50', 'n', (side) => micros(side[1].p50_us)],
      ['p99', 'n', (side) => micros(side[1].p99_us)],
    ].map((column) => column[0] ? column : ['Side', '', column[2]]), [['canary', it.canary], ['live', it.live]], (side) => side[0]),
    h('p', {}, h('label', {}, `Evidence against it: ${against.toFixed(2)} of 100 `, h('meter', { min: '0', max: '100', high: '10', low: '1', optimum: '0', value: String(Math.min(100, against)) }))),
    it.rate_at_most !== undefined && it.rate_at_most !== null && h('p', { class: 'quiet' }, `none failed yet: at most ${Math.min(100, it.rate_at_most * 100).toFixed(2)}% do (95%)`),
    it.one_client && it.canary.requests >= it.min_requests && h('p', {}, 'all requests are of one client, whose failures count once: set `trusted_proxies`, or `client` of [app.NAME.canary]'));
}

function shadow(app) {
  const it = app.shadow;
  if (!it) return null;
  const differences = (known.lists.shadows?.[0]?.differences ?? []).slice(-10).reverse();
  return card('Shadow',
    h('p', {}, `shadow ${it.version} (generation ${it.generation}) gets copies of ${it.percent}% of the requests: ${it.differ} of its answers differ, ${it.same} are the same`),
    differences.length > 0 && table('Answers that differ', [
      ['At', 's', (one) => time(one.at_ms)],
      ['Request', '', (one) => h('span', { class: 'code' }, one.request)],
      ['How', 'l', (one) => one.differences.join('\n')],
    ], differences));
}

function jobs() {
  const all = known.lists.jobs ?? [], open = all.filter((one) => ['waiting', 'running'].includes(one.state));
  if (!all.length) return null;
  const rows = [...open, ...all.filter((one) => !open.includes(one)).slice(0, 20)];
  const act = (one) => ['waiting', 'running'].includes(one.state) ? button('Cancel', () => askCancel(one.id, `job ${one.name}`), 'small', `job ${one.name} ${one.id}`)
    : ['dead', 'cancelled'].includes(one.state) ? button('Retry', () => askCancel(one.id, `job ${one.name}`, 'retry'), 'small', `job ${one.name} ${one.id}`) : null;
  return card('Jobs', table('Jobs', [
    ['ID', 'code', (one) => one.id],
    ['Job', '', (one) => one.name],
    ['Tenant', 'wide', (one) => one.tenant],
    ['State', 's', (one) => badge(one.state)],
    ['Attempt', 'n wide', (one) => `${one.attempt} of ${one.max_attempts}`],
    ['Progress', 's', (one) => one.progress === null ? (one.age_ms ? age(one.age_ms) : '') : `${Math.round(one.progress * 100)}% ${one.progress_text}`],
    ['Note', 'l wide', (one) => one.error ?? one.note ?? ''],
    ['', 'b', act],
  ], rows, (one) => one.id));
}

function schedules() {
  const rows = known.lists.schedules ?? [];
  return rows.length ? card('Schedules', table('Schedules', [
    ['Job', '', (one) => one.name],
    ['When', 'code', (one) => one.tz ? `${one.when} (${one.tz})` : one.when],
    ['Last', 's', (one) => one.last_ms ? time(one.last_ms) : ''],
    ['Next', 's', (one) => one.next_ms ? time(one.next_ms) : ''],
  ], rows, (one) => one.name)) : null;
}

function leases() {
  const rows = known.lists.leases ?? [];
  return rows.length ? card('Leases', table('Leases', [
    ['Lease', '', (one) => one.name],
    ['Gen', 'n', (one) => one.generation ?? ''],
    ['Fence', 'n', (one) => one.fence ?? ''],
    ['Held for', 'n', (one) => one.held_ms === null ? 'nobody has it' : age(one.held_ms)],
    ['Waiting', 'n', (one) => String(one.waiting.length)],
    ['', 'b', (one) => one.generation === null ? null : button('Take away', () => askCancel(one.id, `lease ${one.name}`), 'small', one.name)],
  ], rows, (one) => one.id)) : null;
}

function tenants() {
  const rows = known.lists.tenants ?? [];
  return rows.length ? card('Tenants that stay on a version that was replaced', table('Tenants', [
    ['Tenant', '', (one) => one.tenant],
    ['Gen', 'n', (one) => String(one.generation)],
    ['Has there', 'l', (one) => one.holders.map((holder) => `${holder.kind} ${holder.name}, ${age(holder.age_ms)}`).join('\n')],
  ], rows, (one) => `${one.tenant} ${one.generation}`)) : null;
}

function history() {
  const rows = [...(known.lists.history ?? [])].reverse().slice(0, 50);
  if (!rows.length) return null;
  const sum = (one) => (one.steps ?? []).reduce((all, step) => all + step.took_us, 0);
  return card('History', table('History', [
    ['At', 's', (one) => time(one.at_ms)],
    ['Version', '', (one) => one.version ?? ''],
    ['Gen', 'n wide', (one) => one.generation ?? ''],
    ['Cause', 'wide', (one) => one.cause],
    ['Outcome', 's', (one) => badge(one.outcome)],
    ['Took', 'n wide', (one) => sum(one) ? duration(sum(one) / 1000) : ''],
    ['By', 'wide', (one) => one.by ?? ''],
    ['Why', 'l', (one) => [one.by && h('span', { class: 'narrow' }, `${one.by}. `), [one.message, one.reason, ...(one.warnings ?? [])].filter(Boolean).join('\n')]],
    ['Served', 'n wide', (one) => one.served ? `${grouped(one.served.requests)} in ${age(one.served.for_ms)}` : ''],
  ], rows, (one) => `${one.at_ms} ${one.artifact}`));
}

function events(rows, title) {
  const last = [...rows].reverse().slice(0, 40);
  return last.length ? card(title, table(title, [
    ['At', 's', (one) => time(one.at_ms)],
    ['Kind', 's wide', (one) => one.kind.replaceAll('_', ' ')],
    ['Gen', 'n wide', (one) => one.generation ?? ''],
    ['What', 'l', (one) => one.message],
  ], last, (one) => one.seq)) : null;
}

// ---- Charts ----------------------------------------------------------------------------------

const widthOf = (columns) => {
  const all = $('main').clientWidth || 320;
  const each = columns === 2 && all > 880 ? (all - 20) / 2 : all;
  return Math.max(240, Math.floor(each) - 38);
};
/** A round number not below `value`. */
const ceiling = (value) => {
  const unit = 10 ** Math.floor(Math.log10(Math.max(value, 1e-9)));
  return [1, 2, 5, 10].map((step) => step * unit).find((step) => step >= value) ?? 1;
};

/** What was counted a second, over the last minutes, with each swap marked. */
function chart(app, what, title) {
  const width = widthOf(2), height = 150, left = 44, base = height - 20, roof = 18;
  const now = Math.floor(Date.now() / BUCKET), buckets = WINDOW / BUCKET, kept = samples.get(app.name);
  const first = kept ? Math.max(now - buckets, Math.ceil(kept.since / BUCKET)) : now;
  const values = [];
  for (let at = first; at < now; at += 1) values.push([at, (kept.buckets.get(at)?.[what] ?? 0) * 1000 / BUCKET]);
  const most = ceiling(Math.max(1, ...values.map(([, value]) => value)));
  const x = (at) => left + (at - (now - buckets)) / buckets * (width - left - 4), y = (value) => base - value / most * (base - roof);
  const line = values.map(([at, value], index) => `${index ? 'L' : 'M'}${x(at + .5).toFixed(1)} ${y(value).toFixed(1)}`).join('');
  const area = values.length ? `${line}L${x(values.at(-1)[0] + .5).toFixed(1)} ${base}L${x(values[0][0] + .5).toFixed(1)} ${base}Z` : '';
  const swaps = swapsOf(app.name).filter((event) => event.at_ms > Date.now() - WINDOW).slice(-8);
  const current = values.at(-1)?.[1] ?? 0;
  let taken = Infinity;
  const marks = [...swaps].reverse().map((event) => {
    const at = x(event.at_ms / BUCKET), label = versionOf(app.name, event.generation) ?? `gen ${event.generation}`;
    const flips = at > width - 70, edge = flips ? at - 4 - label.length * 7 : at + 4;
    const fits = (flips ? at : at + 4 + label.length * 7) < taken && edge >= left;
    if (fits) taken = Math.min(edge, at);
    return [h('line', { key: event.seq, class: 'mark', x1: at, x2: at, y1: roof - 12, y2: base }),
      fits && h('text', { key: event.seq, class: 'label', x: flips ? at - 4 : at + 4, y: roof - 4, 'text-anchor': flips ? 'end' : 'start' }, label)];
  });
  return h('section', { class: 'card', key: title, 'aria-label': title }, h('figure', { class: what },
    h('figcaption', {}, h('strong', {}, title), h('span', { class: 'quiet' }, `${grouped(current)} a second now`)),
    h('svg', { viewBox: `0 0 ${width} ${height}`, height, role: 'img', 'aria-label': `${title}: ${grouped(current)} now, ${grouped(Math.max(0, ...values.map(([, value]) => value)))} at the most in the last 5 minutes, ${count(swaps.length, 'swap')}` },
      [0, .5, 1].map((part) => [h('line', { class: 'grid', x1: left, x2: width - 4, y1: y(part * most), y2: y(part * most) }),
        (part !== .5 || most >= 2) && h('text', { x: left - 6, y: y(part * most) + 4, 'text-anchor': 'end' }, grouped(part * most))]),
      h('path', { class: 'area', d: area }), h('path', { class: 'curve', d: line }), marks.map(([mark]) => mark), marks.map(([, label]) => label),
      [5, 4, 3, 2, 1].map((minutes) => h('text', { x: x(now - minutes * 60000 / BUCKET), y: height - 4, 'text-anchor': minutes === 5 ? 'start' : 'middle' }, `-${minutes}m`)),
      h('text', { x: width - 4, y: height - 4, 'text-anchor': 'end' }, 'now'))));
}

/** Requests and errors a second, half a minute before and after each swap. */
function around(app) {
  const span = 30000;
  const rows = swapsOf(app.name).slice(-5).reverse().map((event) => ({ event,
    of: (what) => [rate(app.name, event.at_ms - span, event.at_ms, what), rate(app.name, event.at_ms, Math.min(Date.now(), event.at_ms + span), what)] }))
    .filter(({ of }) => of('requests').some((value) => value !== null));
  if (!rows.length) return null;
  const each = (value) => value === null ? 'not seen' : grouped(value);
  return card('Around each swap', h('p', { class: 'quiet' }, 'What was counted a second, in the 30 s before it and after it.'), table('Requests and errors around each swap', [
    ['At', 's', ({ event }) => time(event.at_ms)],
    ['Version', 'wide', ({ event }) => versionOf(app.name, event.generation) ?? `generation ${event.generation}`],
    ['Requests before', 'n w', ({ of }) => each(of('requests')[0])],
    ['Requests after', 'n w', ({ of }) => each(of('requests')[1])],
    ['Errors before', 'n w', ({ of }) => each(of('errors')[0])],
    ['Errors after', 'n w', ({ of }) => each(of('errors')[1])],
  ], rows, ({ event }) => event.seq));
}

/** Which generation was live when, and how long each took to leave. */
function timeline(app) {
  const spans = new Map(), now = Date.now();
  const of = (id) => { if (!spans.has(id)) spans.set(id, { id }); return spans.get(id); };
  for (const one of known.lists.history ?? []) if (one.generation && one.served) of(one.generation).from = one.at_ms;
  for (const event of eventsOf(app.name)) {
    if (!event.generation) continue;
    const names = { active: 'from', labelled: 'up', draining: 'replaced', drained: 'left', unloaded: 'gone', retained: 'kept' };
    if (names[event.kind]) of(event.generation)[names[event.kind]] = event.at_ms;
  }
  for (const one of app.generations) Object.assign(of(one.generation), { state: one.state, flight: one.in_flight, up: of(one.generation).up ?? now - one.age_ms });
  const rows = [...spans.values()].filter((one) => one.from || one.up).sort((a, b) => a.id - b.id);
  for (const one of rows) one.version = versionOf(app.name, one.id);
  rows.forEach((one, at) => {
    const next = rows.slice(at + 1).find((other) => other.from);
    if (one.from && !one.replaced && one.state !== 'active' && next) one.replaced = next.from;
    if (!one.state && one.from) { one.left ??= one.gone ?? one.replaced; }
  });
  const shown = rows.slice(-8);
  if (!shown.length) return null;
  const width = widthOf(1), row = 26, left = 112, height = shown.length * row + 22;
  const begin = Math.min(now - 60000, ...shown.map((one) => Math.min(one.from ?? now, one.up ?? now)));
  const x = (at) => left + Math.max(0, at - begin) / (now - begin) * (width - left - 70);
  const bar = (style, from, to, y) => h('rect', { class: style, x: x(from), y: y + 5, width: Math.max(3, x(to) - x(from)), height: row - 12, rx: 2 });
  const words = (one) => one.state === 'active' ? `live for ${age(now - one.from || 0)}` : one.state === 'draining' ? `draining, ${one.flight} in flight` : one.state === 'retained' ? 'stays mapped' : one.state ? one.state : 'unloaded';
  return card('Versions',
    h('svg', { viewBox: `0 0 ${width} ${height}`, height, role: 'img', 'aria-label': shown.map((one) => `generation ${one.id}, ${one.version ?? ''}: ${words(one)}`).join('; ') },
      shown.map((one, at) => {
        const y = at * row, end = one.replaced ?? (one.state ? now : one.left ?? now);
        return h('g', { key: one.id },
          h('line', { class: 'grid', x1: left, x2: width - 70, y1: y + row, y2: y + row }),
          h('text', { class: 'label', x: 0, y: y + 18 }, `${String(one.version ?? '').slice(0, 11)} #${one.id}`),
          one.up && one.up < (one.from ?? now) && bar('beside', one.up, one.from ?? one.replaced ?? one.left ?? one.gone ?? now, y),
          one.from && bar('live', one.from, end, y),
          one.from && one.replaced && bar(one.state === 'retained' || one.kept ? 'mapped' : 'leaving', one.replaced, one.state === 'draining' || one.state === 'retained' ? now : one.left ?? one.gone ?? one.replaced, y),
          h('text', { x: width, y: y + 18, 'text-anchor': 'end' }, one.state === 'draining' ? `${one.flight} left` : one.state ?? 'gone'));
      }),
      h('text', { x: left, y: height - 2 }, clock(begin)), h('text', { x: width - 70, y: height - 2, 'text-anchor': 'end' }, 'now')),
    h('p', { class: 'key' }, h('span', { class: 'k-live' }, 'live'), h('span', { class: 'k-leaving' }, 'finishes what it has'), h('span', { class: 'k-beside' }, 'up beside what is live'), h('span', { class: 'k-mapped' }, 'stays mapped')));
}

// ---- Asking ----------------------------------------------------------------------------------

const ASKS = {
  promote: { path: 'promote', title: (what) => `Make ${what} live`, go: 'Promote', text: 'Nothing is loaded: new requests go to it from one instant to the next.', signed: true },
  abort: { path: 'abort', title: (what) => `End ${what}`, go: 'Abort', text: 'What is live is not touched, and what the other has in flight it finishes.', signed: true },
  rollback: { path: 'rollback', title: (what) => `Roll ${what} back`, go: 'Roll back', text: 'Goes back to what was live before, or to something older.', signed: true,
    field: { name: 'to', label: 'Version or generation', hint: 'empty: what was live before' } },
  restart: { path: 'restart', title: (what) => `Restart ${what}`, go: 'Restart', text: 'Replaces what is live by a new generation of the same artifact. Nothing is lost.' },
  pause: { path: 'pause', title: (what) => `Pause ${what}`, go: 'Pause', text: 'Its requests wait, each for 30 s at the longest, until somebody resumes it.' },
  resume: { path: 'resume', title: (what) => `Resume ${what}`, go: 'Resume', text: 'The requests that wait go on.' },
  stop: { path: 'stop', title: (what) => `Stop ${what}`, go: 'Stop', text: 'Ends what runs of it, and keeps it so over restarts of the host. Clients get 503.',
    field: { name: 'message', label: 'What clients are told', hint: 'may be empty' } },
  start: { path: 'start', title: (what) => `Start ${what}`, go: 'Start', text: 'Makes live what was live when it was stopped, or what was deployed since.' },
  'canary-pause': { path: 'canary/pause', title: (what) => `Pause the trial of ${what}`, go: 'Pause trial', text: 'It keeps the share of the requests that it has.' },
  'canary-resume': { path: 'canary/resume', title: (what) => `Resume the trial of ${what}`, go: 'Resume trial', text: 'It goes on with its steps.' },
};

function ask(kind, app, more = {}) {
  const it = ASKS[kind];
  dialog({ title: it.title(more.what ?? app.name), text: it.text, go: it.go, signed: it.signed, fields: it.field ? [it.field] : [],
    send: (given) => fetch(`v1/${it.path}?${query({ app: app.name, label: more.label, ...given })}`, { method: 'POST' }) });
}

function askCancel(id, what, path = 'cancel') {
  const go = path === 'retry' ? 'Retry' : 'Cancel it';
  dialog({ title: path === 'retry' ? `Try ${what} again` : id.startsWith('lease:') ? `Take away ${what}` : `Cancel ${what}`, text: id, go: id.startsWith('lease:') ? 'Take away' : go, fields: [],
    send: () => fetch(`v1/${path}?${query({ id })}`, { method: 'POST' }) });
}

function askDeploy(app) {
  dialog({ title: app ? `Deploy to ${app}` : 'Deploy', text: 'The host checks the file in a child process before it touches it. What is live stays live if it is refused.', go: 'Deploy', signed: true,
    fields: [
      { name: 'file', label: 'Plugin file', type: 'file', accept: '.so', required: true },
      { name: 'how', label: 'How', options: [['', 'make it live'], ['stage', 'bring it up beside what is live, as `next`'], ['canary', 'canary: give it a share of the requests'], ['shadow', 'shadow: give it copies of requests']] },
      { name: 'share', label: 'Share', hint: 'of the requests: 5%, or one after the other 5%,25%,100%', value: '5%', when: ['canary', 'shadow'] },
    ],
    send: ({ file, how, share, ...given }) => {
      const shares = how === 'canary' || how === 'shadow' ? { [how]: share } : how === 'stage' ? { label: 'next' } : {};
      return fetch(`v1/deploy?${query({ app, name: file.name, ...shares, ...given })}`, { method: 'POST', body: file });
    } });
}

const query = (given) => new URLSearchParams(Object.entries(given).filter(([, value]) => value !== undefined && value !== null && value !== '')).toString();

/** Asks once, says who, and shows what becomes of it. */
function dialog({ title, text, go, signed, fields, send }) {
  const box = $('ask'), before = document.activeElement;
  const state = { lines: [], outcome: null, tone: '', how: '', busy: false, done: false, hidden: false };
  const all = signed ? [...fields, { name: 'by', label: 'Who', value: known.who.user, hint: 'stands in the history' }, { name: 'message', label: 'Why', hint: 'may be empty' }] : fields;
  const field = (one) => h('label', { key: one.name }, one.label, one.hint && h('span', { class: 'hint' }, ` ${one.hint}`),
    one.options ? h('select', { name: one.name, onchange: (event) => { state.how = event.target.value; show(); }, disabled: state.busy || state.done }, one.options.map(([value, label]) => h('option', { value }, label)))
      : h('input', { name: one.name, type: one.type ?? 'text', accept: one.accept ?? null, required: one.required ?? false, value: one.value ?? null, autocomplete: 'off', disabled: state.busy || state.done }));
  // What goes on behind a dialog that was hidden shows in the page.
  const show = () => state.hidden || patch(box, [h('form', { key: title, onsubmit: submit },
    h('h2', { id: 'ask-title' }, title), h('p', { class: 'quiet' }, text),
    !signed && h('p', { class: 'quiet' }, `As ${known.who.user}.`),
    all.filter((one) => !one.when || one.when.includes(state.how)).map(field),
    state.lines.length > 0 && h('ol', { class: 'lines', role: 'log', tabindex: '0', 'aria-label': 'Progress' }, state.lines.map(([key, line, took]) => h('li', { key }, h('span', {}, line), took && h('span', { class: 'took' }, took)))),
    h('p', { class: `outcome ${state.tone}`, role: 'status' }, state.outcome ?? ''),
    h('div', { class: 'actions' },
      h('button', { type: 'button', key: 'close', onclick: () => box.close() }, state.busy ? 'Hide' : 'Close'),
      !state.done && h('button', { type: 'submit', key: 'go', class: 'main', disabled: state.busy }, state.busy ? 'Under way' : go)))]);
  const line = (key, said, took) => {
    const there = state.lines.find((one) => one[0] === key);
    if (there) there[1] = said; else state.lines.push([key, said, took]);
    show();
  };
  const end = (tone, outcome) => {
    Object.assign(state, { tone, outcome, busy: false, done: true });
    if (state.hidden) speak(outcome); else { show(); box.querySelector('button')?.focus(); }
    refresh();
  };
  const submit = async (event) => {
    event.preventDefault();
    const given = Object.fromEntries([...new FormData(event.target)].map(([name, value]) => [name, value instanceof File ? value : value.trim()]));
    state.busy = true;
    if (given.file) line('send', `Sending ${given.file.name}, ${fileSize(given.file.size)}`); else show();
    try {
      await follow(await send(given), line, end);
    } catch (error) {
      end('bad', `The host could not be asked: ${error.message}`);
    }
  };
  box.onclose = () => { state.hidden = true; patch(box, []); (before?.isConnected ? before : $('main')).focus(); };
  show();
  box.showModal();
}

/** Reads the lines of an operation until its end, over a lost connection too. */
async function follow(answer, line, end) {
  let operation = null, ended = false;
  const one = (said) => {
    if (said.type === 'accepted') operation = said.operation;
    else if (said.type === 'queued') line('queued', `waits behind ${said.behind.id} (${said.behind.what})`);
    else if (said.type === 'step') line(`${said.app} ${said.step}`, [said.message, ...(said.notes ?? []).map((note) => `${note.warning ? 'warning' : 'note'}: ${note.message}`)].join('; '), duration(said.took_us / 1000));
    else if (said.type === 'draining') line('draining', `generation ${said.generation} finishes ${said.in_flight} in flight`);
    else if (said.type === 'result') { ended = true; end(['done', 'unchanged', 'staged', 'deadline_passed'].includes(said.outcome) ? 'good' : 'bad', said.message); }
  };
  for (let attempt = 0; attempt < 5 && !ended; attempt += 1) {
    try {
      if (attempt > 0) {
        if (!operation) break;
        await new Promise((resolve) => setTimeout(resolve, 1000 * attempt));
        answer = await fetch(`v1/operations/${encodeURIComponent(operation)}`);
      }
      if (!answer.headers.get('content-type')?.startsWith('application/x-ndjson')) {
        const text = await answer.text();
        let said = {};
        try { said = JSON.parse(text); } catch { said = { error: text }; }
        end(answer.ok ? 'good' : 'bad', said.message ?? said.error ?? 'The host did not say what became of it.');
        return;
      }
      const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
      let rest = '';
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        const lines = (rest + value).split('\n');
        rest = lines.pop();
        lines.filter(Boolean).forEach((text) => one(JSON.parse(text)));
      }
    } catch { /* asked again */ }
  }
  if (!ended) end('bad', 'The connection was lost. The host goes on with what it has begun: the history says how it ends.');
}

async function endSession() {
  stream?.close();
  try { await fetch('end', { method: 'POST' }); } catch { /* it ends by itself */ }
  known.link = 'ended';
  later();
}

// ---- The whole -------------------------------------------------------------------------------

function hostView() {
  const { apps, host } = known.status;
  const is = host.leaks, may = host.leak_budget;
  const over = is.retained > may.retained || is.descriptors > may.descriptors || is.bytes > may.bytes;
  const held = is.retained || is.descriptors || is.bytes;
  return [
    h('section', { class: 'card', key: 'host', 'aria-label': 'Host' },
      h('div', { class: 'head' }, h('h2', {}, 'Host')),
      h('p', { class: 'sub' }, h('span', {}, `${count(host.connections.open, 'connection')} open of ${grouped(host.connections.most)}`), h('span', {}, `ABI ${host.abi}`), host.metrics && h('span', {}, `metrics at ${host.metrics}`)),
      h('div', { class: 'actions' }, button('Deploy', () => askDeploy(''), 'main')),
      !apps.length && h('p', { class: 'notes' }, 'Nothing has been deployed: put a plugin file into the drop folder, deploy one here, or `handover deploy FILE.so`.'),
      held ? h('ul', { class: 'notes' }, h('li', { class: over ? 'bad' : 'way' }, `Replaced generations hold ${is.retained === 1 ? '1 library' : `${is.retained} libraries`} (of ${may.retained}), ${count(is.descriptors, 'descriptor')} (of ${may.descriptors}) and ${is.estimated ? 'about ' : ''}${memory(is.bytes)} of heap (of ${memory(may.bytes)})${over ? ': more than the leak budget; the events say whose, a restart gives it back' : ''}`)) : null),
    apps.length > 0 && card('All apps', table('All apps', [
      ['App', '', (app) => h('a', { href: hashOf(app.name) }, h('bdi', {}, app.name))],
      ['State', 's', (app) => badge(app.state)],
      ['Version', '', (app) => app.active?.version ?? ''],
      ['Gen', 'n', (app) => app.active?.generation ?? ''],
      ['In flight', 'n', (app) => grouped(app.generations.reduce((all, one) => all + one.in_flight, 0))],
      ['Requests a second', 'n', (app) => grouped(rate(app.name, Date.now() - 10000, Date.now(), 'requests') ?? 0)],
      ['5xx a second', 'n', (app) => grouped(rate(app.name, Date.now() - 10000, Date.now(), 'errors') ?? 0)],
    ], apps, (app) => app.name)),
    events(known.events, 'Last events'),
  ];
}

function appView(app) {
  const lists = known.lists.app === app.name;
  return [head(app), canary(app), shadow(app),
    h('div', { class: 'two', key: 'charts' }, chart(app, 'requests', 'Requests a second'), chart(app, 'errors', 'Errors (5xx) a second')),
    timeline(app), generations(app), holders(app), around(app),
    lists && [jobs(), schedules(), leases(), tenants(), history()],
    events(eventsOf(app.name), 'Last events')];
}

let drawn = false;
/** Draws before the next frame, once. */
function later() {
  if (drawn) return;
  drawn = true;
  (document.hidden ? setTimeout : requestAnimationFrame)(draw);
}

function draw() {
  drawn = false;
  top();
  apps();
  if (!known.status) return;
  const app = appNow();
  document.title = app ? `${plain(app.name)}: ${app.state} · handover` : 'handover';
  patch($('main'), h('div', {}, app ? appView(app) : hostView()).kids);
}

function choose() {
  let name = '';
  try { name = decodeURIComponent(location.hash.slice(1)); } catch { /* not one of ours */ }
  if (name === 'main') return;
  known.shown = name || null;
  known.lists = {};
  later();
  refresh();
}

addEventListener('hashchange', () => { choose(); $('main').focus({ preventScroll: true }); scrollTo(0, 0); });
addEventListener('resize', later);
document.addEventListener('visibilitychange', refresh);
setInterval(refresh, 5000);
setInterval(() => { watch(); later(); }, 1000);
choose();
listen();

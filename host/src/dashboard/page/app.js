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

const known = { status: null, who: null, events: [], run: null, lists: {}, shown: null, link: 'waiting',
  figures: { measures: true, bounds: [], samples: [], ahead: 0 } };
const WINDOW = 10 * 60 * 1000, BUCKET = 3000, EVENTS = 400, AROUND = 30000;
/** By app and generation: the most that was in flight since it began to drain. */
const peaks = new Map();
/** By app and generation: the version, which events do not name. */
const versions = new Map();
const versionOf = (app, generation) => versions.get(`${app} ${generation}`);

function remember(status) {
  for (const app of status.apps) for (const one of app.generations) {
    const place = `${app.name} ${one.generation}`;
    versions.set(place, one.version);
    if (one.state === 'draining') peaks.set(place, Math.max(peaks.get(place) ?? 0, one.in_flight));
  }
}

/** The host counts second by second, also before the page was there. */
function take(told) {
  const figures = known.figures;
  figures.measures = told.measures;
  figures.bounds = told.bounds_ms;
  figures.samples.push(...told.samples);
  figures.samples.splice(0, figures.samples.findIndex((one) => one.at_ms > hostNow() - WINDOW - AROUND - BUCKET));
  if (told.samples.length) figures.ahead = told.samples.at(-1).at_ms - Date.now();
}
/** The time by the clock of the host, which may be another one than that of the browser. */
const hostNow = () => Date.now() + known.figures.ahead;

/** What was counted of an app in `from..to`; null where nobody counted. The second of a swap is of neither side. */
function counted(app, from, to) {
  const sum = { ms: 0, requests: 0, errors: 0, within: [] };
  for (const one of known.figures.samples) {
    if (one.at_ms - one.ms < from || one.at_ms > to) continue;
    sum.ms += one.ms;
    add(sum, one.apps[app]);
  }
  return sum.ms ? sum : null;
}
function add(sum, more) {
  sum.requests += more?.requests ?? 0;
  sum.errors += more?.errors ?? 0;
  more?.within?.forEach((number, at) => { sum.within[at] = (sum.within[at] ?? 0) + number; });
}
/** What was counted of an app in each bucket of the last minutes. */
function buckets(app, now) {
  const all = new Map();
  for (const one of known.figures.samples) {
    const at = Math.floor((one.at_ms - one.ms / 2) / BUCKET);
    if (at < now - WINDOW / BUCKET || at >= now) continue;
    if (!all.has(at)) all.set(at, { ms: 0, requests: 0, errors: 0, within: [] });
    all.get(at).ms += one.ms;
    add(all.get(at), one.apps[app]);
  }
  return all;
}
const rate = (sum, what) => sum === null ? null : sum[what] * 1000 / sum.ms;

/** How long the share `part` of the requests took at the longest, in ms and in words. A histogram knows it as exactly as its bounds. */
function quantile(sum, part) {
  const { bounds } = known.figures, within = sum?.within ?? [];
  const all = within.reduce((one, more) => one + (more ?? 0), 0);
  if (!all) return null;
  let left = part * all, at = 0;
  while (at < within.length - 1 && left > (within[at] ?? 0)) { left -= within[at] ?? 0; at += 1; }
  if (at >= bounds.length) return [bounds.at(-1), `over ${duration(bounds.at(-1))}`];
  const low = at ? bounds[at - 1] : 0, ms = low + (bounds[at] - low) * left / within[at];
  return [ms, at ? duration(ms) : `under ${duration(bounds[0])}`];
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
  stream.addEventListener('who', (message) => {
    // The first of each stream: what was counted comes anew.
    const before = known.who;
    known.who = JSON.parse(message.data);
    known.figures.samples = [];
    known.link = 'live';
    heard = Date.now();
    if (!before) { refresh(); tail(); }
    later();
  });
  stream.addEventListener('figures', (message) => { take(JSON.parse(message.data)); heard = Date.now(); later(); });
  stream.addEventListener('status', (message) => { known.status = JSON.parse(message.data); known.link = 'live'; heard = Date.now(); remember(known.status); later(); });
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

const LISTS = [['jobs', 'v1/jobs?limit=100&'], ['schedules', 'v1/schedules?'], ['leases', 'v1/leases?'],
  ['tenants', 'v1/tenants?'], ['history', 'v1/history?'], ['shadows', 'v1/shadow?']];
/** For those who operate. */
const SECRET = [['settings', 'v1/settings?'], ['entries', 'v1/audit?limit=50&']];

/** Asks for what the stream does not bring. */
async function refresh() {
  const app = known.shown;
  if (!known.who || known.link !== 'live' || document.hidden) return;
  const lists = { app };
  const get = async (path, give) => {
    const answer = await fetch(path);
    if (answer.ok) give(await answer.json());
  };
  const wanted = [...(app ? LISTS : []), ...(known.who.operates ? SECRET.filter(([name]) => app || name === 'entries') : [])];
  const asked = wanted.map(([name, path]) => get(path + query({ app }), (said) => { lists[name] = said[name]; }));
  if (app && known.who.operates) asked.push(get(`v1/state/${encodeURIComponent(app)}/stats`, (said) => { lists.stats = said; }));
  await Promise.allSettled(asked);
  if (app !== known.shown) return;
  for (const one of lists.history ?? []) if (one.generation && one.version) versions.set(`${app} ${one.generation}`, one.version);
  known.lists = { ...(known.lists.app === app ? known.lists : {}), ...lists };
  later();
}

// ---- The log ---------------------------------------------------------------------------------

const RECORDS = 300;
const log = { level: 'info', app: '', records: [], shown: null, last: null, run: null, problem: '', busy: false, asked: 0 };

/** Asks for the records that came since. Each time anew: so the host looks each time who asks. */
async function tail() {
  if (log.busy || !known.who || known.link !== 'live' || document.hidden) return;
  log.busy = true;
  const asked = log.asked, app = known.shown ?? log.app;
  try {
    const answer = await fetch(`v1/logs?${query({ app, level: log.level, ...(log.run ? { since: log.last, run: log.run } : { lines: RECORDS }) })}`);
    const text = await answer.text();
    if (asked !== log.asked) return;
    log.problem = answer.ok ? '' : JSON.parse(text).error;
    for (const line of answer.ok ? text.split('\n').filter(Boolean) : []) {
      const record = JSON.parse(line);
      if (record.run !== log.run) log.run = record.run;
      log.last = record.seq;
      log.records.push(record);
    }
    log.records.splice(0, log.records.length - RECORDS);
    later();
  } catch { /* asked again */ } finally {
    log.busy = false;
    if (asked !== log.asked) tail();
  }
}
/** Begins anew, with other records. */
function retail(change) {
  Object.assign(log, { records: [], shown: null, last: null, run: null, problem: '', asked: log.asked + 1 }, change);
  later();
  tail();
}
function hold(held) {
  if (held === (log.shown !== null)) return;
  log.shown = held ? [...log.records] : null;
  later();
}
const LEVELS = { error: 'bad', warn: 'way' };

function logCard() {
  const records = log.shown ?? log.records, last = records.at(-1);
  const missed = log.shown ? log.records.filter((one) => !last || one.run !== last.run || one.seq > last.seq).length : 0;
  const choice = (label, value, options, change) => h('label', { key: label }, `${label} `,
    h('select', { onchange: (event) => change(event.target.value) }, options.map(([word, text]) => h('option', { value: word, selected: word === value }, text))));
  const fields = (one) => Object.entries(one.fields ?? {}).map(([name, value]) => `${name}=${typeof value === 'string' ? value : JSON.stringify(value)}`).join(' ');
  return card('Log',
    h('div', { class: 'tools', key: 'tools' },
      choice('At least', log.level, ['error', 'warn', 'info', 'debug', 'trace'].map((word) => [word, word]), (level) => retail({ level })),
      !known.shown && choice('Of', log.app, [['', 'host and all apps'], ...(known.status?.apps ?? []).map((app) => [app.name, app.name])], (app) => retail({ app })),
      h('button', { key: 'follow', type: 'button', class: 'small', 'aria-pressed': log.shown === null ? 'true' : 'false', onclick: () => hold(log.shown === null) }, 'Follow'),
      h('span', { class: 'quiet', role: 'status' }, log.shown ? 'Held' : ''), missed > 0 && h('span', { class: 'quiet', key: 'missed' }, count(missed, 'new record'))),
    log.problem && h('p', { class: 'quiet' }, log.problem),
    h('div', { class: 'records', key: 'records', id: 'records', tabindex: '0', role: 'log', 'aria-live': 'off', 'aria-label': 'Records of the log', onscroll: scrolled },
      records.length > 0 && h('ol', {}, records.map((one) => h('li', { key: `${one.run} ${one.seq}` },
        time(one.at_ms), ' ', h('span', { class: `badge ${LEVELS[one.level] ?? ''}` }, one.level), ' ',
        !known.shown && one.app && h('span', { class: 'of' }, h('bdi', {}, one.app), ' '),
        one.message, ' ', h('span', { class: 'quiet' }, fields(one)))))),
    !records.length && !log.problem && h('p', { class: 'quiet' }, 'No record of this kind is kept.'));
}
/** Who scrolls back wants to read: what comes then waits. */
function scrolled(event) {
  const list = event.target;
  hold(list.scrollHeight - list.scrollTop - list.clientHeight > 24);
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
      button('Reload', () => ask('reload', app)),
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
    ['', 'b', (one) => button('Move', () => askMove(one), 'small', one.tenant)],
  ], rows, (one) => `${one.tenant} ${one.generation}`)) : null;
}

const json = (value) => JSON.stringify(value);
function settings(app) {
  const rows = known.lists.settings;
  if (!known.who?.operates || !rows) return null;
  return card('Settings',
    rows.length > 0 && table('Settings', [
      ['Key', 'code l', (one) => one.key],
      ['Value', 'code l', (one) => json(one.value)],
      ['Changed', 's wide', (one) => one.at_ms ? time(one.at_ms) : ''],
      ['By', 'wide', (one) => one.by ?? ''],
      ['', 'b', (one) => [button('Change', () => askSet(app, one), 'small', one.key), ' ', button('Take away', () => askUnset(app, one.key), 'small', one.key)]],
    ], rows, (one) => one.key),
    !rows.length && h('p', { class: 'quiet' }, 'Nothing is set. The app says which keys there are.'),
    h('div', { class: 'actions' }, button('Set', () => askSet(app))));
}

// ---- State -----------------------------------------------------------------------------------

const KEYS = 50;
/** The keys that are shown: of which app, namespace and prefix, and what they come behind. */
let keys = null;

async function browse(wanted) {
  keys = { rows: [], behind: [], ...wanted, problem: '', busy: true };
  const mine = keys;
  later();
  try {
    const answer = await fetch(`v1/state/${encodeURIComponent(mine.app)}/keys?${query({ namespace: mine.namespace, prefix: mine.prefix, after: mine.behind.at(-1), limit: KEYS + 1 })}`);
    const text = await answer.text();
    if (!answer.ok) throw new Error(JSON.parse(text).error);
    const lines = text.split('\n').filter(Boolean).map((line) => JSON.parse(line));
    const problem = lines.find((line) => line.error);
    if (problem) throw new Error(problem.error);
    Object.assign(mine, { rows: lines.slice(0, KEYS), more: lines.length > KEYS });
  } catch (error) { mine.problem = error.message; }
  mine.busy = false;
  later();
}

function state(app) {
  const stats = known.lists.stats;
  if (!known.who?.operates || !stats) return null;
  const shown = keys?.app === app.name ? keys : null;
  const last = shown?.rows.at(-1)?.key;
  const choose = (event) => {
    event.preventDefault();
    browse({ app: app.name, ...Object.fromEntries(new FormData(event.target)) });
  };
  const at = shown ? shown.behind.length * KEYS : 0;
  return card('State',
    h('p', { class: 'sub' }, h('span', {}, `${count(stats.keys, 'key')}, ${fileSize(stats.bytes)} of ${fileSize(stats.max_bytes)}`),
      h('span', {}, `file ${fileSize(stats.file_bytes)}`), h('span', {}, `version ${stats.version}`),
      stats.memory_keys > 0 && h('span', {}, `${count(stats.memory_keys, 'key')} in memory, ${fileSize(stats.memory_bytes)}`)),
    h('meter', { min: '0', max: String(stats.max_bytes), high: String(stats.max_bytes * .9), value: String(stats.bytes), 'aria-label': 'Room that is used' }),
    stats.namespaces.length > 0 && h('form', { class: 'tools', onsubmit: choose },
      h('label', {}, 'Namespace ', h('select', { name: 'namespace' }, stats.namespaces.map((name) => h('option', { key: name, value: name }, name)))),
      h('label', {}, 'Begins with ', h('input', { name: 'prefix', autocomplete: 'off', spellcheck: 'false' })),
      h('button', { type: 'submit', class: 'small' }, 'Show keys')),
    shown?.problem && h('p', { class: 'outcome bad', role: 'alert' }, shown.problem),
    shown?.rows.length > 0 && table('Keys', [
      ['Key', 'code l', (one) => one.key ?? `base64 ${one.key_base64}`],
      ['Size', 'n', (one) => fileSize(one.size)],
      ['Version', 'n wide', (one) => String(one.version)],
      ['Until', 's', (one) => one.expires_at_ms ? time(one.expires_at_ms) : ''],
    ], shown.rows, (one) => one.key ?? one.key_base64),
    shown && !shown.problem && h('div', { class: 'tools' },
      h('span', { role: 'status' }, shown.busy ? 'Asking the host' : shown.rows.length ? `Keys ${at + 1} to ${at + shown.rows.length}${shown.more ? ', and there are more' : ', the last'}` : 'There are no such keys.'),
      shown.behind.length > 0 && h('button', { key: 'back', type: 'button', class: 'small', disabled: shown.busy, onclick: () => browse({ ...shown, behind: shown.behind.slice(0, -1) }) }, 'Back'),
      shown.more && last !== undefined && h('button', { key: 'next', type: 'button', class: 'small', disabled: shown.busy, onclick: () => browse({ ...shown, behind: [...shown.behind, last] }) }, 'Next'),
      shown.more && last === undefined && h('span', { class: 'quiet' }, 'The next ones come behind a key that is no text: `handover state keys` shows them.')));
}

function audit() {
  const rows = known.lists.entries ?? [];
  if (!known.who?.operates || !rows.length) return null;
  const said = (one) => Object.entries(one.arguments ?? {}).map(([name, value]) => `${name}=${value}`).join(' ');
  return card('Audit log', table('Audit log', [
    ['At', 's', (one) => time(one.at_ms)],
    ['What', 'code l', (one) => one.call],
    !known.shown && ['App', 'wide', (one) => one.app ?? ''],
    ['With', 'l wide', said],
    ['Who', '', (one) => one.by && one.by !== one.user ? `${one.by} (${one.user ?? one.uid ?? 'nobody known'})` : one.user ?? one.by ?? String(one.uid ?? '')],
    ['From', 's wide', (one) => one.source],
    ['Outcome', 's', (one) => badge(one.outcome ?? 'running')],
    ['Why', 'l wide', (one) => one.error ?? ''],
  ].filter(Boolean), [...rows].reverse(), (one) => `${one.at_ms} ${one.call} ${said(one)}`));
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

/** Where each swap is marked in a chart: lines, and those labels that find room. */
function marks(app, x, { width, left, roof, base }) {
  const swaps = swapsOf(app.name).filter((event) => event.at_ms > hostNow() - WINDOW).slice(-12);
  let taken = Infinity;
  return [...swaps].reverse().map((event) => {
    const at = x(event.at_ms / BUCKET), label = versionOf(app.name, event.generation) ?? `gen ${event.generation}`;
    const flips = at > width - 70, edge = flips ? at - 4 - label.length * 7 : at + 4;
    const fits = (flips ? at : at + 4 + label.length * 7) < taken && edge >= left;
    if (fits) taken = Math.min(edge, at);
    return [h('line', { key: event.seq, class: 'mark', x1: at, x2: at, y1: roof - 12, y2: base }),
      fits && h('text', { key: event.seq, class: 'label', x: flips ? at - 4 : at + 4, y: roof - 4, 'text-anchor': flips ? 'end' : 'start' }, label)];
  });
}

/** Draws lines over the last minutes, with each swap marked. A line: its class, its value in a bucket. */
function chart(app, { title, style, lines, words, unit, columns, key }) {
  const width = widthOf(columns), height = 150, left = 50, base = height - 20, roof = 18;
  const now = Math.floor(hostNow() / BUCKET), all = WINDOW / BUCKET, counts = buckets(app.name, now);
  const drawn = lines.map(([name, value]) => {
    const values = [];
    for (let at = now - all; at < now; at += 1) values.push([at, counts.has(at) ? value(counts.get(at)) : null]);
    return [name, values];
  });
  const seen = drawn.flatMap(([, values]) => values.map(([, value]) => value)).filter((value) => value !== null);
  const most = ceiling(Math.max(1, ...seen));
  const x = (at) => left + (at - (now - all)) / all * (width - left - 4), y = (value) => base - value / most * (base - roof);
  const runs = (values) => {
    const parts = [[]];
    for (const [at, value] of values) { if (value === null) { if (parts.at(-1).length) parts.push([]); } else parts.at(-1).push([x(at + .5).toFixed(1), y(value).toFixed(1)]); }
    return parts.filter((part) => part.length);
  };
  const path = (part) => `M${part.map((point) => point.join(' ')).join('L')}${part.length === 1 ? 'h1' : ''}`;
  const curve = (values) => runs(values).map(path).join('');
  const area = (values) => runs(values).map((part) => `${path(part)}L${part.at(-1)[0]} ${base}L${part[0][0]} ${base}Z`).join('');
  const marked = marks(app, x, { width, left, roof, base });
  const current = words(counted(app.name, hostNow() - 5000, Infinity));
  return h('section', { class: 'card', key: title, 'aria-label': title }, h('figure', { class: style },
    h('figcaption', {}, h('strong', {}, title), h('span', { class: 'quiet' }, current)),
    h('svg', { viewBox: `0 0 ${width} ${height}`, height, role: 'img', 'aria-label': `${title}: ${current}; ${unit(Math.max(0, ...seen))} at the most in the last 10 minutes, ${count(marked.length, 'swap')}` },
      [0, .5, 1].map((part) => [h('line', { class: 'grid', x1: left, x2: width - 4, y1: y(part * most), y2: y(part * most) }),
        (part !== .5 || most >= 2) && h('text', { x: left - 6, y: y(part * most) + 4, 'text-anchor': 'end' }, unit(part * most))]),
      drawn.length === 1 && h('path', { key: 'area', class: 'area', d: area(drawn[0][1]) }),
      drawn.map(([name, values]) => h('path', { key: name, class: `curve ${name}`, d: curve(values) })),
      marked.map(([mark]) => mark), marked.map(([, label]) => label),
      [10, 8, 6, 4, 2].map((minutes) => h('text', { x: x(now - minutes * 60000 / BUCKET), y: height - 4, 'text-anchor': minutes === 10 ? 'start' : 'middle' }, `-${minutes}m`)),
      h('text', { x: width - 4, y: height - 4, 'text-anchor': 'end' }, 'now')),
    key));
}

function charts(app) {
  const second = (what) => (sum) => sum ? `${grouped(rate(sum, what))} a second now` : 'not counted yet';
  const latency = (sum) => { const [half, most] = [quantile(sum, .5), quantile(sum, .99)]; return half ? `p50 ${half[1]}, p99 ${most[1]} now` : 'no requests now'; };
  return h('div', { class: 'two', key: 'charts' },
    chart(app, { title: 'Requests a second', style: 'requests', columns: 2, unit: grouped, words: second('requests'), lines: [['all', (sum) => rate(sum, 'requests')]] }),
    chart(app, { title: 'Errors (5xx) a second', style: 'errors', columns: 2, unit: grouped, words: second('errors'), lines: [['all', (sum) => rate(sum, 'errors')]] }),
    known.figures.measures ? chart(app, { title: 'Latency', style: 'latency', columns: 1, unit: (ms) => !ms ? '0' : ms < 10 ? `${grouped(ms)} ms` : duration(ms), words: latency,
      lines: [['p50', (sum) => quantile(sum, .5)?.[0] ?? null], ['p99', (sum) => quantile(sum, .99)?.[0] ?? null]],
      key: h('p', { class: 'key' }, h('span', { class: 'k-p50' }, 'p50: half of the requests took no longer'), h('span', { class: 'k-p99' }, 'p99: 99 of 100 took no longer')) })
      : card('Latency', h('p', { class: 'quiet' }, 'This host does not count how long requests take. `request_durations = true` in [metrics] turns it on, from the next start of the host.')));
}

/** What was counted before and after each swap: the last one in words. */
function around(app) {
  const now = hostNow();
  const rows = swapsOf(app.name).slice(-5).reverse().map((event) => ({ event,
    sides: [counted(app.name, event.at_ms - AROUND, event.at_ms), counted(app.name, event.at_ms, Math.min(now, event.at_ms + AROUND))] }))
    .filter(({ sides }) => sides.some(Boolean));
  if (!rows.length) return null;
  const name = (event) => versionOf(app.name, event.generation) ?? `generation ${event.generation}`;
  const each = (side, what) => side ? grouped(rate(side, what)) : 'not counted';
  const took = (side, part) => quantile(side, part)?.[1] ?? '';
  const words = (side) => !side ? 'nothing was counted' : !side.requests ? 'no requests'
    : `${grouped(rate(side, 'requests'))} requests a second, ${side.errors ? `${grouped(rate(side, 'errors'))} errors a second` : 'no errors'}${took(side, .5) && `, p50 ${took(side, .5)}, p99 ${took(side, .99)}`}`;
  const { event, sides: [before, after] } = rows[0];
  const since = now - event.at_ms;
  const { measures } = known.figures;
  return card('Around each swap',
    h('p', {}, `The last swap made ${name(event)} live at `, time(event.at_ms), `. In the 30 s before it: ${words(before)}. ${since < AROUND ? `In the ${age(since)} since` : 'In the 30 s after it'}: ${words(after)}.`),
    table('Requests, errors and latency around each swap', [
      ['At', 's', (one) => time(one.event.at_ms)],
      ['Version', 'wide', (one) => name(one.event)],
      ['Requests/s before', 'n w', ({ sides }) => each(sides[0], 'requests')],
      ['after', 'n w', ({ sides }) => each(sides[1], 'requests')],
      ['Errors/s before', 'n w', ({ sides }) => each(sides[0], 'errors')],
      ['after', 'n w', ({ sides }) => each(sides[1], 'errors')],
      measures && ['p99 before', 'n w wide', ({ sides }) => took(sides[0], .99)],
      measures && ['after', 'n w wide', ({ sides }) => took(sides[1], .99)],
    ].filter(Boolean), rows, (one) => one.event.seq));
}

/** Which generation was live when, and how long each took to leave. */
function timeline(app) {
  const spans = new Map(), now = hostNow();
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
  promote: { path: 'promote', title: (what) => `Make ${what} live`, go: 'Promote', text: 'Nothing is loaded: new requests go to it from one instant to the next.', why: true },
  abort: { path: 'abort', title: (what) => `End ${what}`, go: 'Abort', text: 'What is live is not touched, and what the other has in flight it finishes.', why: true },
  rollback: { path: 'rollback', title: (what) => `Roll ${what} back`, go: 'Roll back', text: 'Goes back to what was live before, or to something older.', why: true,
    field: { name: 'to', label: 'Version or generation', hint: 'empty: what was live before' } },
  restart: { path: 'restart', title: (what) => `Restart ${what}`, go: 'Restart', text: 'Replaces what is live by a new generation of the same artifact. Nothing is lost.' },
  pause: { path: 'pause', title: (what) => `Pause ${what}`, go: 'Pause', text: 'Its requests wait, each for 30 s at the longest, until somebody resumes it.' },
  resume: { path: 'resume', title: (what) => `Resume ${what}`, go: 'Resume', text: 'The requests that wait go on.' },
  stop: { path: 'stop', title: (what) => `Stop ${what}`, go: 'Stop', text: 'Ends what runs of it, and keeps it so over restarts of the host. Clients get 503.',
    field: { name: 'message', label: 'What clients are told', hint: 'may be empty' } },
  reload: { path: 'reload', title: (what) => `Reload ${what}`, go: 'Reload', text: 'Looks into the drop folder, and makes live what is staged.' },
  'drain-node': { path: 'drain-node', title: () => 'Drain this node', go: 'Drain', text: 'It is no longer ready, so that balancers send nothing new. What comes all the same is served.' },
  'drain-undo': { path: 'drain-node', title: () => 'Give this node traffic again', go: 'Undo the drain', text: 'It is ready again.', more: { undo: 'true' } },
  start: { path: 'start', title: (what) => `Start ${what}`, go: 'Start', text: 'Makes live what was live when it was stopped, or what was deployed since.' },
  'canary-pause': { path: 'canary/pause', title: (what) => `Pause the trial of ${what}`, go: 'Pause trial', text: 'It keeps the share of the requests that it has.' },
  'canary-resume': { path: 'canary/resume', title: (what) => `Resume the trial of ${what}`, go: 'Resume trial', text: 'It goes on with its steps.' },
};

function ask(kind, app, more = {}) {
  const it = ASKS[kind];
  dialog({ title: it.title(more.what ?? app?.name), text: it.text, go: it.go, why: it.why, fields: it.field ? [it.field] : [],
    send: (given) => fetch(`v1/${it.path}?${query({ app: app?.name, label: more.label, ...it.more, ...given })}`, { method: 'POST' }) });
}

function askCancel(id, what, path = 'cancel') {
  const go = path === 'retry' ? 'Retry' : 'Cancel it';
  dialog({ title: path === 'retry' ? `Try ${what} again` : id.startsWith('lease:') ? `Take away ${what}` : `Cancel ${what}`, text: id, go: id.startsWith('lease:') ? 'Take away' : go, fields: [],
    send: (given) => fetch(`v1/${path}?${query({ id, ...given })}`, { method: 'POST' }) });
}

function askMove(one) {
  dialog({ title: `Move ${one.tenant}`, text: `New requests of the tenant go to what is live, no longer to generation ${one.generation}.`, go: 'Move',
    fields: [{ name: 'now', label: 'End what it has there', type: 'checkbox', hint: 'else it finishes that' }],
    send: ({ now, ...given }) => fetch(`v1/move?${query({ app: one.app, tenant: one.tenant, now: now && 'true', ...given })}`, { method: 'POST' }) });
}

/** As `handover set`: JSON, and a text where it is none. */
function settingOf(text) {
  try { return json(JSON.parse(text)); } catch { return json(text); }
}
function askSet(app, one) {
  dialog({ title: one ? `Change ${one.key} of ${app.name}` : `Set a value for ${app.name}`, text: 'The version that is live checks it first. Every version that runs gets it.', go: 'Set',
    fields: [!one && { name: 'key', label: 'Key', required: true }, { name: 'value', label: 'Value', hint: 'JSON, and a text where it is none', area: true, required: true, value: one && json(one.value) }].filter(Boolean),
    send: ({ key, value, ...given }) => fetch(`v1/set?${query({ app: app.name, key: key ?? one.key, ...given })}`, { method: 'POST', body: settingOf(value) }) });
}
function askUnset(app, key) {
  dialog({ title: `Take ${key} of ${app.name} away`, text: 'Every version that runs goes on without it.', go: 'Take away', fields: [],
    send: (given) => fetch(`v1/set?${query({ app: app.name, key, unset: 'true', ...given })}`, { method: 'POST' }) });
}

/** What a header takes of a file. */
async function base64(file) {
  return btoa(String.fromCharCode(...new Uint8Array(await file.arrayBuffer())));
}

function askDeploy(app) {
  dialog({ title: app ? `Deploy to ${app}` : 'Deploy', text: 'The host checks the file in a child process before it touches it. What is live stays live if it is refused.', go: 'Deploy', why: true,
    fields: [
      { name: 'file', label: 'Plugin file', type: 'file', accept: '.so', required: true },
      { name: 'signature', label: 'Signature', hint: 'its .minisig file, where the host asks for one', type: 'file', accept: '.minisig' },
      { name: 'how', label: 'How', options: [['', 'make it live'], ['stage', 'bring it up beside what is live, as `next`'], ['canary', 'canary: give it a share of the requests'], ['shadow', 'shadow: give it copies of requests']] },
      { name: 'share', label: 'Share', hint: 'of the requests: 5%, or one after the other 5%,25%,100%', value: '5%', when: ['canary', 'shadow'] },
    ],
    send: async ({ file, signature, how, share, ...given }) => {
      const shares = how === 'canary' || how === 'shadow' ? { [how]: share } : how === 'stage' ? { label: 'next' } : {};
      return fetch(`v1/deploy?${query({ app, name: file.name, ...shares, ...given })}`, { method: 'POST', body: file,
        headers: signature?.size ? { 'handover-signature': await base64(signature) } : {} });
    } });
}

const query = (given) => new URLSearchParams(Object.entries(given).filter(([, value]) => value !== undefined && value !== null && value !== '')).toString();

/** Asks once, says who, and shows what becomes of it. */
function dialog({ title, text, go, why, fields, send }) {
  const box = $('ask'), before = document.activeElement;
  const state = { lines: [], outcome: null, tone: '', how: '', busy: false, done: false, hidden: false };
  const all = [...fields, { name: 'by', label: 'Who', value: known.who.user, hint: why ? 'stands in the history' : 'stands in the audit log' }, ...(why ? [{ name: 'message', label: 'Why', hint: 'may be empty' }] : [])];
  const control = (one) => {
    const off = state.busy || state.done, common = { name: one.name, required: one.required ?? false, disabled: off };
    if (one.options) return h('select', { ...common, onchange: (event) => { state.how = event.target.value; show(); } }, one.options.map(([value, label]) => h('option', { value }, label)));
    if (one.area) return h('textarea', { ...common, rows: '3', spellcheck: 'false' }, one.value ?? '');
    return h('input', { ...common, type: one.type ?? 'text', accept: one.accept ?? null, value: one.value ?? null, autocomplete: 'off' });
  };
  const field = (one) => h('label', { key: one.name, class: one.type === 'checkbox' ? 'check' : '' }, one.label, one.hint && h('span', { class: 'hint' }, ` ${one.hint}`), control(one));
  // What goes on behind a dialog that was hidden shows in the page.
  const show = () => state.hidden || patch(box, [h('form', { key: title, onsubmit: submit },
    h('h2', { id: 'ask-title' }, title), h('p', { class: 'quiet' }, text),
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
      h('div', { class: 'actions' }, button('Deploy', () => askDeploy(''), 'main'),
        host.drained ? button('Undo the drain', () => ask('drain-undo')) : button('Drain', () => ask('drain-node'))),
      (host.drained || host.not_ready) && h('p', { class: 'notes' }, host.drained ? 'This node is drained: it is not ready, and serves what comes all the same.' : `This node is not ready: ${host.not_ready}`),
      !apps.length && h('p', { class: 'notes' }, 'Nothing has been deployed: put a plugin file into the drop folder, deploy one here, or `handover deploy FILE.so`.'),
      held ? h('ul', { class: 'notes' }, h('li', { class: over ? 'bad' : 'way' }, `Replaced generations hold ${is.retained === 1 ? '1 library' : `${is.retained} libraries`} (of ${may.retained}), ${count(is.descriptors, 'descriptor')} (of ${may.descriptors}) and ${is.estimated ? 'about ' : ''}${memory(is.bytes)} of heap (of ${memory(may.bytes)})${over ? ': more than the leak budget; the events say whose, a restart gives it back' : ''}`)) : null),
    apps.length > 0 && card('All apps', table('All apps', [
      ['App', '', (app) => h('a', { href: hashOf(app.name) }, h('bdi', {}, app.name))],
      ['State', 's', (app) => badge(app.state)],
      ['Version', '', (app) => app.active?.version ?? ''],
      ['Gen', 'n', (app) => app.active?.generation ?? ''],
      ['In flight', 'n', (app) => grouped(app.generations.reduce((all, one) => all + one.in_flight, 0))],
      ['Requests a second', 'n', (app) => grouped(rate(counted(app.name, hostNow() - 10000, Infinity), 'requests') ?? 0)],
      ['5xx a second', 'n', (app) => grouped(rate(counted(app.name, hostNow() - 10000, Infinity), 'errors') ?? 0)],
    ], apps, (app) => app.name)),
    events(known.events, 'Last events'),
    audit(),
    logCard(),
  ];
}

function appView(app) {
  const lists = known.lists.app === app.name;
  return [head(app), canary(app), shadow(app),
    charts(app), around(app),
    timeline(app), generations(app), holders(app),
    lists && [jobs(), schedules(), leases(), tenants(), settings(app), state(app), history()],
    events(eventsOf(app.name), 'Last events'),
    lists && audit(), logCard()];
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
  const records = $('records');
  if (log.shown === null && records) records.scrollTop = records.scrollHeight;
}

function choose() {
  let name = '';
  try { name = decodeURIComponent(location.hash.slice(1)); } catch { /* not one of ours */ }
  if (name === 'main') return;
  known.shown = name || null;
  known.lists = {};
  retail({});
  refresh();
}

addEventListener('hashchange', () => { choose(); $('main').focus({ preventScroll: true }); scrollTo(0, 0); });
addEventListener('resize', later);
document.addEventListener('visibilitychange', refresh);
setInterval(refresh, 5000);
setInterval(tail, 1000);
setInterval(() => { watch(); later(); }, 1000);
choose();
listen();

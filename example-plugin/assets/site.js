// What makes an open page live: counts that go up, links that come and go, and the news of another version.
// Everything else on the page works without it.
"use strict";

const $ = (id) => document.getElementById(id);
const made = { version: document.body.dataset.version, generation: Number(document.body.dataset.generation) };

// ---- The stream of events ------------------------------------------------------------------------------------

const RETRY_MS = 250;
const RETRY_MAX_MS = 5000;
let retry = RETRY_MS;
let handingOver = false;

function connect() {
  const stream = new EventSource("/events");
  const on = (name, act) => stream.addEventListener(name, (event) => act(JSON.parse(event.data)));
  on("version", (now) => {
    retry = RETRY_MS;
    handingOver = false;
    show("live", `Live · ${now.version}`);
    news(now);
  });
  on("links", showLinks);
  on("hits", showHits);
  on("draining", () => {
    handingOver = true;
    show("handing-over", "Handing over");
  });
  stream.onerror = () => {
    if (!handingOver) show("offline", "Reconnecting");
    // A browser connects again by itself when a stream ends, and gives up when the answer is an error: then we do it.
    if (stream.readyState === EventSource.CLOSED) {
      setTimeout(connect, retry);
      retry = Math.min(retry * 2, RETRY_MAX_MS);
      handingOver = false;
    }
  };
  // Without this, a page that the browser keeps for its back button would hold the stream.
  addEventListener("pagehide", () => stream.close(), { once: true });
}

function show(state, text) {
  const live = $("live");
  live.hidden = false;
  live.dataset.state = state;
  $("live-text").textContent = text;
}

// ---- Another version -----------------------------------------------------------------------------------------

let dismissed = 0;

function news(now) {
  const other = now.version !== made.version;
  const isNews = (other || now.generation !== made.generation) && now.generation !== dismissed;
  if (isNews) {
    $("banner-news").textContent = other ? `Version ${now.version} is live.` : `A new build of ${now.version} is live.`;
    $("banner-made").textContent = other
      ? `This page was made by ${made.version}.`
      : `This page was made by generation ${made.generation}.`;
    $("banner-later").onclick = () => {
      dismissed = now.generation;
      showBanner(false);
    };
  }
  showBanner(isNews);
}

function showBanner(visible) {
  $("banner").hidden = !visible;
  document.body.classList.toggle("has-news", visible);
}

// What was typed so far comes along to the new version.
const FIELDS = ["url", "slug"];
const DRAFT = "draft";

$("banner-reload").addEventListener("click", (event) => {
  event.preventDefault();
  const draft = Object.fromEntries(FIELDS.map((id) => [id, $(id)?.value ?? ""]));
  sessionStorage.setItem(DRAFT, JSON.stringify(draft));
  location.replace(location.pathname);
});

const draft = JSON.parse(sessionStorage.getItem(DRAFT) ?? "{}");
sessionStorage.removeItem(DRAFT);
for (const id of FIELDS) if (draft[id] && $(id)) $(id).value = draft[id];

// ---- The table -----------------------------------------------------------------------------------------------

const rows = $("rows");
const rowOf = (slug) => rows?.querySelector(`tr[data-slug="${CSS.escape(slug)}"]`);

function showLinks(links) {
  if (!rows) return;
  const wanted = new Set(links.map((link) => link.slug));
  for (const row of [...rows.children]) if (!wanted.has(row.dataset.slug)) row.remove();
  // Rows that stay are moved only when they have to be: the focus and a click under way are not lost.
  links.forEach((link, place) => {
    const row = rowOf(link.slug) ?? newRow(link);
    if (rows.children[place] !== row) rows.insertBefore(row, rows.children[place] ?? null);
    showTarget(row, link.url);
    setHits(row, link.hits);
  });
  $("count").textContent = links.length;
  $("links-word").textContent = links.length === 1 ? "link" : "links";
  $("empty").hidden = links.length > 0;
  showTotal();
}

function showHits(hits) {
  if (!rows) return;
  for (const [slug, count] of Object.entries(hits)) {
    const row = rowOf(slug);
    if (row) setHits(row, count);
  }
  showTotal();
}

function newRow({ slug }) {
  const row = $("blank").content.firstElementChild.cloneNode(true);
  row.dataset.slug = slug;
  const link = row.querySelector(".slug");
  link.href = link.textContent = `/${slug}`;
  row.querySelector("form").action = `/links/${slug}/remove`;
  row.querySelector(".copy").setAttribute("aria-label", `Copy /${slug}`);
  row.querySelector(".remove").setAttribute("aria-label", `Remove /${slug}`);
  showCopy(row);
  return row;
}

function showTarget(row, url) {
  const target = row.querySelector(".target");
  target.title = url;
  target.textContent = url.replace(/^[a-z]+:\/\/(www\.)?/i, "");
}

function setHits(row, count) {
  const cell = row.querySelector(".hits");
  if (cell.textContent === String(count)) return;
  cell.textContent = count;
  cell.classList.remove("up");
  void cell.offsetWidth; // Lets the animation begin again.
  cell.classList.add("up");
}

function showTotal() {
  let total = 0;
  for (const cell of rows.querySelectorAll(".hits")) total += Number(cell.textContent);
  $("total").textContent = total;
  $("clicks-word").textContent = total === 1 ? "click" : "clicks";
}

// The clipboard is there on https and on localhost only: elsewhere there is no button.
function showCopy(row) {
  row.querySelector(".copy").hidden = !navigator.clipboard;
}

rows?.addEventListener("click", async (event) => {
  const button = event.target.closest(".copy");
  if (!button) return;
  await navigator.clipboard.writeText(new URL(button.closest("tr").querySelector(".slug").href).href);
  button.classList.add("done");
  setTimeout(() => button.classList.remove("done"), 1200);
});

if (rows) for (const row of rows.children) showCopy(row);
// A reload of "your link is ready" should not say so again.
if (location.search) history.replaceState(null, "", location.pathname);

connect();
// A page that comes back from the back button's cache starts to listen again.
addEventListener("pageshow", (event) => event.persisted && connect());

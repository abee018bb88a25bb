/**
 * What the pages can do beyond being read: tables that sort, numbers that stay live, a heatmap that is walked by keys.
 *
 * Every page says all it has to say without this file. Text from the network is written as text, never as markup.
 */

const prefix = document.body.dataset.prefix;

// --- tables ------------------------------------------------------------------------------------------------------

function readKey(row, column) {
  const cell = row.cells[column];
  const text = cell?.dataset.sort ?? cell?.textContent.trim() ?? "";
  const number = Number(text.replaceAll(",", "").replace("−", "-"));
  return text !== "" && Number.isFinite(number) ? number : text.toLowerCase();
}

function compareKeys(one, other) {
  if (typeof one === "number" && typeof other === "number") return one - other;
  if (typeof one === typeof other) return one < other ? -1 : one > other ? 1 : 0;
  return typeof one === "number" ? -1 : 1;
}

function sortTable(table, header, column) {
  const isAscending = header.getAttribute("aria-sort") !== "ascending";
  for (const one of header.parentElement.cells) one.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", isAscending ? "ascending" : "descending");
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [readKey(row, column), row]);
  rows.sort(([one], [other]) => (isAscending ? compareKeys(one, other) : compareKeys(other, one)));
  body.append(...rows.map(([, row]) => row));
  announce(`sorted by ${header.textContent.trim()}, ${isAscending ? "ascending" : "descending"}`);
}

function makeSortable(table) {
  for (const [column, header] of [...table.tHead.rows[0].cells].entries()) {
    const label = header.textContent.trim();
    if (!label || header.querySelector("button") || header.querySelector(".visually-hidden")) continue;
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = label;
    button.addEventListener("click", () => sortTable(table, header, column));
    header.replaceChildren(button);
  }
}

function announce(text) {
  document.getElementById("live-status").textContent = text;
}

// --- the heatmap -------------------------------------------------------------------------------------------------

function makeWalkable(table) {
  const rows = [...table.tBodies[0].rows].map((row) => [...row.querySelectorAll("td")]);
  const detail = table.closest("details").querySelector(".cell-detail");
  const at = (cell) => {
    const row = rows.findIndex((cells) => cells.includes(cell));
    return [row, row < 0 ? -1 : rows[row].indexOf(cell)];
  };
  const show = (cell) => {
    if (cell?.title) detail.textContent = `${cell.title[0].toUpperCase()}${cell.title.slice(1)}.`;
  };
  rows[0]?.[0]?.setAttribute("tabindex", "0");
  table.addEventListener("pointerover", (event) => show(event.target.closest("td")));
  table.addEventListener("focusin", (event) => show(event.target.closest("td")));
  table.addEventListener("keydown", (event) => {
    const [row, column] = at(event.target);
    const steps = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] };
    const step = steps[event.key];
    const ends = { Home: 0, End: rows[row]?.length - 1 };
    const next = step ? rows[row + step[0]]?.[column + step[1]] : rows[row]?.[ends[event.key]];
    if (row < 0 || !next || !(step || event.key in ends)) return;
    event.preventDefault();
    event.target.setAttribute("tabindex", "-1");
    next.setAttribute("tabindex", "0");
    next.focus();
  });
}

// --- live --------------------------------------------------------------------------------------------------------

const WORDS = {
  agree: ["verified", "good"], confirm_generator: ["acquitted", "good"], acquittal: ["acquitted", "good"], conviction: ["convicted", "bad"], no_challenge: ["not audited", ""],
  confirm_prior: ["convicted", "bad"], no_opening: ["did not open", "bad"], equivocation: ["two commitments", "bad"],
  void: ["void", "warn"], refunded: ["refunded", "warn"],
};

function setText(element, text) {
  if (element.textContent === text) return;
  element.textContent = text;
  element.classList.remove("changed");
  void element.offsetWidth;
  element.classList.add("changed");
}

function makeBadge(change) {
  const badge = document.createElement("span");
  const [word, tone] = change.ending ? WORDS[change.ending] ?? [change.ending, ""] : [change.phase, "live"];
  badge.className = `badge ${change.phase === "refused" ? "warn" : tone}`;
  badge.textContent = word;
  return badge;
}

function makeRow(table, change) {
  const row = document.createElement("tr");
  row.dataset.job = change.job;
  const head = document.createElement("th");
  head.scope = "row";
  const link = document.createElement("a");
  link.className = "id";
  link.href = `${prefix}/jobs/${change.job}`;
  link.title = change.job;
  link.textContent = `${change.job.slice(0, 10)}…`;
  head.append(link);
  row.append(head);
  for (const header of [...table.tHead.rows[0].cells].slice(1)) {
    const cell = document.createElement("td");
    if (header.classList.contains("num")) cell.className = "num";
    row.append(cell);
  }
  for (const [column, field] of [[1, "state"], [2, "generator"], [3, "audit"], [7, "slashed"]]) row.cells[column].dataset.field = field;
  if (change.at_ms) row.cells[8].textContent = new Date(change.at_ms).toISOString().slice(11, 19);
  table.tBodies[0].prepend(row);
  while (table.tBodies[0].rows.length > 24) table.tBodies[0].rows[24].remove();
  return row;
}

function showChange(table, change) {
  const known = table.querySelector(`tr[data-job="${CSS.escape(change.job)}"]`);
  const row = known ?? makeRow(table, change);
  const field = (name) => row.querySelector(`[data-field="${name}"]`);
  field("state").replaceChildren(makeBadge(change));
  if (change.generator && !field("generator").textContent.trim()) setText(field("generator"), change.generator);
  setText(field("audit"), change.audit);
  setText(field("slashed"), change.slashed ? String(change.slashed) : "");
}

function showNumbers(overview) {
  for (const element of document.querySelectorAll("[data-live]")) {
    const value = overview[element.dataset.live];
    if (typeof value === "number") setText(element, value.toLocaleString("en-US"));
  }
}

async function reloadArticle(article) {
  const answer = await fetch(location.pathname, { headers: { accept: "text/html" } });
  if (!answer.ok) return;
  const page = new DOMParser().parseFromString(await answer.text(), "text/html");
  const fresh = page.querySelector("article[data-job]");
  if (!fresh) return;
  article.replaceWith(document.importNode(fresh, true));
  enhance();
  if (fresh.dataset.livePage) markLive(true);
  announce("this job has moved on");
}

function markLive(isLive) {
  for (const mark of document.querySelectorAll(".live-mark")) {
    mark.classList.toggle("is-live", isLive);
    mark.querySelector("[data-live-state]").textContent = isLive ? "live" : "connection lost; trying again";
  }
}

function follow() {
  const page = document.querySelector("[data-live-page]");
  if (!page?.dataset.livePage || !("EventSource" in window)) return;
  const source = new EventSource(`${prefix}/live?after=${encodeURIComponent(page.dataset.cursor)}`);
  let pending = Promise.resolve();
  source.addEventListener("open", () => markLive(true));
  source.addEventListener("error", () => markLive(false));
  source.addEventListener("reload", () => location.reload());
  source.addEventListener("news", (event) => {
    const news = JSON.parse(event.data);
    if (page.dataset.livePage === "overview") {
      showNumbers(news.overview);
      const table = document.querySelector('table[data-live-table="jobs"]');
      if (table) for (const change of news.jobs) showChange(table, change);
      else if (news.jobs.length) location.reload();
      return;
    }
    if (!news.jobs.some((change) => change.job === page.dataset.job)) return;
    pending = pending.then(async () => {
      const article = document.querySelector("article[data-job]");
      await reloadArticle(article).catch(() => markLive(false));
      if (!document.querySelector("article[data-job]").dataset.livePage) source.close();
    });
  });
  window.addEventListener("pagehide", () => source.close());
}

function enhance() {
  for (const table of document.querySelectorAll("table.sortable")) makeSortable(table);
  for (const table of document.querySelectorAll("table.heat")) makeWalkable(table);
  document.dispatchEvent(new CustomEvent("pocache:enhanced"));
}

enhance();
follow();

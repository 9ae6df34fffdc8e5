"use strict";
(() => {
  const PAGE = 20; // cards per page
  const $ = (id) => document.getElementById(id);
  const data = JSON.parse($("data").textContent);

  function element(name, properties = {}, ...children) {
    const made = Object.assign(document.createElement(name), properties);
    made.append(...children);
    return made;
  }

  // Tables of scores: a click on a header sorts by the column, highest numbers first. Baselines stay below.

  function sortable(table) {
    const heads = [...table.tHead.rows[table.tHead.rows.length - 1].cells];
    heads.forEach((head, column) => {
      const button = element("button", { type: "button" }, ...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const numbers = head.classList.contains("number");
        const now = head.getAttribute("aria-sort");
        const descending = now ? now === "ascending" : numbers;
        for (const other of heads) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", descending ? "descending" : "ascending");
        const value = (row) => row.cells[column].dataset.value ?? (column ? "" : row.cells[0].textContent);
        const order = (a, b) => (numbers ? a - b : a.localeCompare(b)) * (descending ? -1 : 1);
        const rows = [...table.tBodies[0].rows].sort((one, other) => {
          const [a, b] = [value(one), value(other)];
          return a === "" || b === "" ? (a === "") - (b === "") : order(a, b);
        });
        table.tBodies[0].append(...rows);
      });
    });
  }

  // Predictions: the address holds the search (#q=...&scenario=...&seed=...&hidden=0,3&page=2).

  const state = { q: "", scenario: "", seed: "", hidden: new Set(), page: 1 };

  function readAddress() {
    if (location.hash && !location.hash.includes("=")) return false; // a link in the table of contents
    const given = new URLSearchParams(location.hash.slice(1));
    const known = (select, name) => [...$(select).options].some((option) => option.value === given.get(name));
    state.q = given.get("q") ?? "";
    state.scenario = known("scenario", "scenario") ? given.get("scenario") : "";
    state.seed = known("seed", "seed") ? given.get("seed") : $("seed").options[0].value;
    state.hidden = new Set((given.get("hidden") ?? "").split(",").filter(Boolean).map(Number));
    state.page = Math.max(1, parseInt(given.get("page"), 10) || 1);
    $("query").value = state.q;
    $("scenario").value = state.scenario;
    $("seed").value = state.seed;
    for (const box of $("systems").querySelectorAll("input")) box.checked = !state.hidden.has(Number(box.value));
    return location.hash !== "";
  }

  function writeAddress() {
    const asked = new URLSearchParams();
    if (state.q) asked.set("q", state.q);
    if (state.scenario) asked.set("scenario", state.scenario);
    if (state.seed !== $("seed").options[0].value) asked.set("seed", state.seed);
    if (state.hidden.size) asked.set("hidden", [...state.hidden].sort((a, b) => a - b).join(","));
    if (state.page > 1) asked.set("page", state.page);
    history.replaceState(null, "", `#${String(asked) || "predictions"}`);
  }

  /** Returns system, seed and text of each system that is shown and has a text for the row. */
  function said(row) {
    return data.systems.flatMap((system, number) => {
      if (state.hidden.has(number)) return [];
      const chosen = Math.max(0, system.seeds.indexOf(Number(state.seed))); // a system without the seed shows its first seed
      const place = row.said[number][chosen];
      return place === null ? [] : [{ system, seed: system.seeds[chosen], ...row.texts[place] }];
    });
  }

  /** Joins the parts of a text: strings, or pairs of a string and its mark. */
  const whole = (parts) => parts.map((part) => (Array.isArray(part) ? part[0] : part)).join("");

  const words = () => state.q.toLowerCase().split(/\s+/).filter(Boolean);

  function found(row) {
    if (state.scenario && row.scenario !== state.scenario) return false;
    const wanted = words();
    if (!wanted.length) return true;
    const texts = [row.id, row.dialogue, ...row.references.map(whole), ...said(row).map((one) => whole(one.parts))];
    const all = texts.join("\n").toLowerCase();
    return wanted.every((word) => all.includes(word));
  }

  /** Returns a text as nodes, with the words of the search marked. */
  function marked(text) {
    const wanted = words().map((word) => word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&"));
    if (!wanted.length) return [text];
    const parts = text.split(new RegExp(`(${wanted.join("|")})`, "gi"));
    return parts.map((part, i) => (i % 2 ? element("mark", {}, part) : part));
  }

  function paragraph(parts) {
    const nodes = parts.flatMap((part) => {
      if (!Array.isArray(part)) return marked(part);
      return [element("span", { className: part[1], title: part[1] }, ...marked(part[0]))];
    });
    return element("p", { className: "text" }, ...(whole(parts) ? nodes : [element("em", {}, "(empty)")]));
  }

  function turn(line) {
    const speaker = /^([^\s：:]{1,12}[：:])(.*)$/.exec(line);
    if (!speaker) return element("p", {}, ...marked(line));
    return element("p", {}, element("span", { className: "speaker" }, ...marked(speaker[1])), ...marked(speaker[2]));
  }

  function summary({ system, seed, parts, rouge, omitted }, best) {
    const head = element("h4", {}, system.label, element("span", { className: "seed" }, `seed ${seed}`));
    if (rouge) {
      const numbers = rouge.map((number) => number.toFixed(1)).join(" / ");
      const title = "ROUGE-1, ROUGE-2 and ROUGE-L F1 × 100 of this row";
      head.append(element("span", { className: best ? "rouge best" : "rouge", title }, numbers));
    }
    const made = element("section", { className: "summary" }, head, paragraph(parts));
    if (omitted) {
      const values = omitted.map((value) => element("span", { className: "omitted" }, ...marked(value)));
      made.append(element("p", { className: "lost" }, "omitted: ", ...values));
    }
    return made;
  }

  function card(row) {
    const dialogue = element("div", { className: "dialogue" }, ...row.dialogue.split("\n").map(turn));
    const texts = said(row);
    const mean = (one) => (one.rouge ? one.rouge.reduce((sum, number) => sum + number) : -1);
    const highest = Math.max(...texts.map(mean));
    const best = (one) => texts.length > 1 && highest >= 0 && mean(one) === highest;
    const head = element("h3", {}, element("span", { className: "scenario" }, row.scenario), ...marked(row.id));
    const reference = element("section", { className: "summary reference" }, element("h4", {}, "reference"));
    reference.append(...row.references.map(paragraph));
    const right = element("div", { className: "texts" }, reference, ...texts.map((one) => summary(one, best(one))));
    return element("article", { className: "card" }, head, dialogue, right);
  }

  function show() {
    const rows = data.rows.filter(found);
    const pages = Math.max(1, Math.ceil(rows.length / PAGE));
    state.page = Math.min(state.page, pages);
    const first = (state.page - 1) * PAGE;
    $("hits").textContent = rows.length === data.rows.length ? `${rows.length} rows` : `${rows.length} of ${data.rows.length} rows`;
    $("cards").replaceChildren(...rows.slice(first, first + PAGE).map(card));
    $("place").textContent = `page ${state.page} of ${pages}`;
    $("previous").disabled = state.page === 1;
    $("next").disabled = state.page === pages;
    $("pages").hidden = pages === 1;
  }

  function ask(change, page = 1) {
    Object.assign(state, change, { page });
    show();
    writeAddress();
  }

  function turnPage(by) {
    ask({}, state.page + by);
    $("predictions").scrollIntoView();
  }

  document.querySelectorAll("table.sortable").forEach(sortable);
  $("scenario").append(...data.scenarios.map((name) => new Option(name, name)));
  const seeds = [...new Set(data.systems.flatMap((system) => system.seeds))].sort((a, b) => a - b);
  $("seed").append(...seeds.map((seed) => new Option(seed, seed)));
  $("seed").parentNode.hidden = seeds.length < 2;
  data.systems.forEach((system, value) => {
    const box = element("input", { type: "checkbox", value, checked: true });
    $("systems").append(element("label", {}, box, ` ${system.label}`));
  });
  let waiting;
  $("query").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(() => ask({ q: $("query").value.trim() }), 120);
  });
  $("scenario").addEventListener("change", () => ask({ scenario: $("scenario").value }));
  $("seed").addEventListener("change", () => ask({ seed: $("seed").value }, state.page));
  $("systems").addEventListener("change", () => {
    const hidden = [...$("systems").querySelectorAll("input:not(:checked)")].map((box) => Number(box.value));
    ask({ hidden: new Set(hidden) }, state.page);
  });
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  $("previous").addEventListener("click", () => turnPage(-1));
  $("next").addEventListener("click", () => turnPage(1));
  window.addEventListener("hashchange", () => {
    if (readAddress()) show();
  });
  window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => (one.open = true)));
  state.seed = $("seed").options[0].value; // an address such as #overview names no seed
  $("browser").hidden = false;
  const asked = readAddress();
  show();
  if (asked) $("predictions").scrollIntoView();
})();

/* The list of all episodes, with its filters, and a reader beside it. */

const PAGE = 50;

async function episodes({ runs, flags, block }) {
  const index = await load("index");
  const rows = rowsOf(index);
  const shelf = makeShelf(rows, block);
  const criteria = { run: "", played: "", order: "in order", flags: new Set(), query: "" };
  const list = makeList(rows, runs.length > 1, (number) => reader.open(number));
  const filters = makeFilters(flags, criteria, renew);
  const reader = makeReader(rows, runs, shelf, onShow, () => browser.setAttribute("data-view", "list"));
  const browser = el("div", { class: "browser", "data-view": "list" }, list.node, reader.node);

  function onShow(number, what) {
    browser.setAttribute("data-view", what);
    if (browser.getBoundingClientRect().top < 0) browser.scrollIntoView();
    list.mark(number);
    history.replaceState(null, "", `#episode-${number}`);
  }

  async function renew() {
    const found = await find(rows, criteria, shelf, list.progress);
    if (found) (list.show(found), filters.count(found));
  }

  document
    .getElementById("episodes-body")
    .replaceChildren(explained(index.sections, runs), controls(criteria, runs, index, renew), filters.node, browser);
  await renew();
  const asked = /^#episode-(\d+)$/.exec(location.hash);
  if (rows.length && (asked || innerWidth > 900)) await reader.open(Math.min(Number(asked?.[1] ?? 0), rows.length - 1));
}

/* {node, show(rows), mark(number), progress(number)}: pages of rows, the one that is read marked. */
function makeList(rows, several, open) {
  const list = el("ol", { class: "rows", keydown: walk });
  const count = el("p", { class: "count", "aria-live": "polite" });
  const pager = el("div", { class: "pager" });
  let [found, page, current] = [rows, 0, null];

  function show(which, to = 0) {
    [found, page] = [which, to];
    const shown = found.slice(page * PAGE, (page + 1) * PAGE);
    const of = found.length < rows.length ? `${found.length.toLocaleString("en")} of ` : "";
    count.textContent = of + plural(rows.length, "episode");
    list.replaceChildren(...shown.map((row) => entry(row, several, open)));
    list.scrollTop = 0;
    const turn = (by, name) => {
      const disabled = page + by < 0 || (page + by) * PAGE >= found.length;
      return button(name, () => show(found, page + by), "turn", { disabled });
    };
    const place = `${page * PAGE + 1}–${page * PAGE + shown.length}`;
    pager.replaceChildren(...(found.length > PAGE ? [turn(-1, "Previous"), place, turn(1, "Next")] : []));
    mark(current);
  }

  function mark(number) {
    current = number;
    for (const row of list.querySelectorAll(".row"))
      row.setAttribute("aria-current", String(row.value === `${number}`));
  }

  function walk(event) {
    const way = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    const next = way && event.target.closest("li")[way]?.firstElementChild;
    if (next) (event.preventDefault(), next.focus(), open(Number(next.value)));
  }

  const progress = (number) => (count.textContent = `Searching, ${number} of ${plural(rows.length, "episode")} …`);
  return { node: el("div", { class: "list" }, count, list, pager), show, mark, progress };
}

function entry(row, several, open) {
  const { kind, step, run } = row.when;
  const missing = row.digits.includes("·") || !row.digits ? "·" : "?";
  const colours = row.score === null ? {} : { "--u": row.score / 9 };
  const whole = row.score === null ? missing : String(Math.round(row.score));
  const about = el(
    "span",
    { class: "about" },
    several && el("i", { class: "swatch", style: { "--colour": colour(run) } }),
    kind === "eval" ? `held out after ${step}` : `step ${step}`,
    strip(row.digits),
    el("b", {}, number(row.reward)),
  );
  const badge = el("span", { class: `badge ${row.score === null ? "" : "scored"}`, style: colours }, whole);
  const content = [badge, el("span", { class: "question" }, row.question), about];
  return el(
    "li",
    {},
    button(content, () => open(row.number), "row", { value: row.number }),
  );
}

/* {node, count(rows)}: buttons that narrow the list; each says how many of the rows that are left it would keep. */
function makeFilters(flags, criteria, renew) {
  const flip = (bit) => () => {
    criteria.flags.has(bit) ? criteria.flags.delete(bit) : criteria.flags.add(bit);
    buttons[bit].setAttribute("aria-pressed", String(criteria.flags.has(bit)));
    renew();
  };
  const pressed = { "aria-pressed": "false" };
  const buttons = flags.map(([name, title], bit) => button(name, flip(bit), "filter", { ...pressed, title }));
  const count = (found) =>
    buttons.forEach((button, bit) => {
      const kept = found.filter((row) => held(row, bit)).length;
      button.replaceChildren(flags[bit][0], el("span", {}, kept.toLocaleString("en")));
      button.disabled = !kept && !criteria.flags.has(bit);
    });
  return { node: el("div", { class: "filters", role: "group", "aria-label": "Filters" }, buttons), count };
}

function controls(criteria, runs, index, renew) {
  const select = (label, name, options) => {
    const change = (event) => ((criteria[name] = event.target.value), renew());
    return el(
      "label",
      {},
      label,
      el(
        "select",
        { change, "aria-label": label },
        options.map(([value, text]) => el("option", { value }, text)),
      ),
    );
  };
  const steps = (kind) => [
    ...new Set(index.sections.filter((section) => section.kind === kind).map(({ step }) => step)),
  ];
  const played = [
    ["", "all"],
    ["step", "training"],
    ["eval", "held out"],
    ...steps("eval").map((step) => [`eval-${step}`, `held out after ${plural(step, "step")}`]),
    ...steps("step").map((step) => [`step-${step}`, `training step ${step}`]),
  ];
  let waiting = 0;
  const input = (event) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => ((criteria.query = event.target.value.trim().toLowerCase()), renew()), 150);
  };
  const placeholder = "questions, steps, results, reasons";
  return el(
    "div",
    { class: "controls", role: "search" },
    el("label", { class: "search" }, "Search", el("input", { type: "search", placeholder, input })),
    runs.length > 1 && select("Run", "run", [["", "all"], ...runs.map((run, number) => [number, run.name])]),
    select("Played in", "played", played),
    select(
      "Order",
      "order",
      Object.keys(ORDERS).map((name) => [name, name]),
    ),
  );
}

function explained(sections, runs) {
  const shown = sections.filter(({ kind }) => kind === "step").length;
  const all = runs.reduce((sum, run) => sum + run.steps, 0);
  const some = `Whole training steps, evenly spread: ${shown} of ${all}; the curves above show all of them. `;
  return el(
    "p",
    { class: "soft" },
    shown < all && some,
    "A digit from 0 (wrong or empty) to 9 (right, supported, economical) is the teacher’s; “?” stands for a score ",
    "that could not be had, which counts as missing and never as 0. Point at a digit for the teacher’s reasons.",
  );
}

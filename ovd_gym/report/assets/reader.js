/* One episode or one group, beside the list. */

const MODES = { steps: "Steps", mask: "Tokens by mask", advantage: "by advantage", likelihood: "by likelihood" };

/* {node, open(number), openGroup(number)}; `onShow` is told (number, "episode" or "group"), `onBack` nothing. */
function makeReader(rows, runs, shelf, onShow, onBack) {
  const node = el("div", { class: "reader", tabindex: -1 });
  let mode = "steps";
  let views = [];

  async function viewsOf(found, compact) {
    const run = found[0].when.run;
    const bodies = await Promise.all(found.map(({ number }) => shelf.body(number)));
    return bodies.map((body) => episodeView(body, runs[run], shelf.tokens(found[0].number), compact));
  }

  async function open(number) {
    const found = together(rows, rows[number]);
    const shown = await viewsOf([rows[number]], false);
    const group = found.length > 1 && button(`Group of ${found.length} side by side`, () => openGroup(number), "group");
    present(number, shown, "episode", [button("← List", onBack, "back"), switchOf(), group]);
  }

  async function openGroup(number) {
    const shown = await viewsOf(together(rows, rows[number]), true);
    present(number, shown, "group", [button("← One episode", () => open(number), "back"), switchOf()]);
    node.querySelector(".tools").after(el("h3", { class: "text" }, rows[number].question));
  }

  function present(number, shown, what, tools) {
    views = shown;
    const columns = el(
      "div",
      { class: `shown ${what}` },
      views.map((view) => view.node),
    );
    node.replaceChildren(el("div", { class: "tools" }, tools), el("p", { class: "key" }), columns);
    paint();
    onShow(number, what);
  }

  function paint() {
    node.querySelector(".key").replaceChildren(...keyOf(mode));
    views.forEach((view) => view.show(mode));
  }

  function switchOf() {
    const choice = ([name, label]) => {
      const change = () => ((mode = name), paint());
      return el("label", {}, el("input", { type: "radio", name: "mode", checked: name === mode, change }), label);
    };
    return el("fieldset", { class: "switch" }, el("legend", {}, "Colour"), Object.entries(MODES).map(choice));
  }

  return { node, open, openGroup };
}

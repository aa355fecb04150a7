/* Elements and hints. Strings become text nodes, never markup: that is the one way data gets onto this page. */

const SVG = "http://www.w3.org/2000/svg";

function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "style") Object.entries(value).forEach(([key, setting]) => node.style.setProperty(key, setting));
    else if (name === "hint") (hints.set(node, value), node.setAttribute("data-hint", ""));
    else if (typeof value === "function") node.addEventListener(name, value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

/* Numbers as short as they can be said; a dash where there is none. */
function number(value, digits = 3) {
  if (value === null || value === undefined) return "–";
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6)) return value.toExponential(1);
  if (Math.abs(value) >= 1000) return Math.round(value).toLocaleString("en");
  return String(Number(value.toPrecision(digits)));
}

const fixed = (value, digits = 2) => (value === null || value === undefined ? "–" : value.toFixed(digits));
const plural = (count, what) => `${count.toLocaleString("en")} ${what}${count === 1 ? "" : "s"}`;
const percent = (value) => `${(100 * value).toFixed(value > 0.1 ? 0 : 1)} %`;

const button = (content, click, kind, attributes = {}) =>
  el("button", { type: "button", class: kind, click, ...attributes }, content);

/* A table whose rows are named by their first cell. */
function table(head, rows) {
  const cells = ([name, ...rest]) => [el("th", { scope: "row" }, name), rest.map((cell) => el("td", {}, cell))];
  return el(
    "div",
    { class: "wide" },
    el(
      "table",
      {},
      el(
        "thead",
        {},
        el(
          "tr",
          {},
          head.map((name) => el("th", { scope: "col" }, name)),
        ),
      ),
      el(
        "tbody",
        {},
        rows.map((row) => el("tr", {}, cells(row))),
      ),
    ),
  );
}

/* Hints: what an element with a hint says is built when it is pointed at or focused. */

const hints = new WeakMap(); // element -> function that returns children
let hinted = null;

function showHint(target, children, x = null, y = null) {
  const tip = document.getElementById("tip");
  tip.replaceChildren(...children.filter(Boolean));
  tip.hidden = false;
  const box = target.getBoundingClientRect();
  const left = (x ?? box.left + box.width / 2) - tip.offsetWidth / 2;
  const above = (y ?? box.top) - tip.offsetHeight - 10;
  tip.style.left = `${Math.max(8, Math.min(left, document.documentElement.clientWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${above > 8 ? above : (y ?? box.bottom) + 14}px`;
  hinted?.removeAttribute("aria-describedby");
  hinted = target;
  target.setAttribute("aria-describedby", "tip");
}

function hideHint() {
  document.getElementById("tip").hidden = true;
  hinted?.removeAttribute("aria-describedby");
  hinted = null;
}

for (const type of ["pointerover", "focusin"]) {
  document.addEventListener(type, (event) => {
    const target = event.target.closest?.("[data-hint]");
    if (target) showHint(target, hints.get(target)());
    else if (hinted?.hasAttribute("data-hint")) hideHint();
  });
}
document.addEventListener("focusout", hideHint);
document.addEventListener("scroll", hideHint, { passive: true });
document.addEventListener("keydown", (event) => event.key === "Escape" && hideHint());

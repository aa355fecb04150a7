/* Charts. Colours tell runs apart, dashes the metrics of one chart. Arrow keys move along the steps. */

const RUN_COLOURS = 8;
const DASHES = ["none", "5 3", "1.5 3"];
const colour = (run) => `var(--run-${run % RUN_COLOURS})`;

/* About `count` round numbers from low to high. */
function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(i * step);
  return found;
}

/* A centred moving average over about a tenth of the values; shorter windows at the ends, so no lag. */
function smooth(values) {
  const reach = Math.floor(values.length / 20);
  return values.map((_, i) => {
    const window = values.slice(Math.max(0, i - reach), i + reach + 1);
    return window.reduce((sum, value) => sum + value, 0) / window.length;
  });
}

/* Every series of a chart that is shown: {label, dash, run, name, x, y, low, high}. */
function seriesOf(chart, runs, hidden) {
  return chart.lines
    .flatMap((line, i) =>
      line.runs.map(
        (points, run) =>
          points && !hidden.has(run) && { ...points, label: line.label, dash: DASHES[i], run, name: runs[run].name },
      ),
    )
    .filter(Boolean);
}

function frame(width, height, [x0, x1], [y0, y1], columns = width / 80) {
  const edge = { left: 38, right: 8, top: 8, bottom: 20 };
  const x = (value) => edge.left + ((value - x0) / (x1 - x0)) * (width - edge.left - edge.right);
  const y = (value) => height - edge.bottom - ((value - y0) / (y1 - y0)) * (height - edge.top - edge.bottom);
  const steps = ticks(x0, x1, columns).filter(Number.isInteger);
  const axes = svg(
    "g",
    { class: "axes" },
    ticks(y0, y1, height / 40).map((tick) => [
      svg("line", { x1: edge.left, x2: width - edge.right, y1: y(tick), y2: y(tick) }),
      svg("text", { x: edge.left - 6, y: y(tick) + 3.5, "text-anchor": "end" }, number(tick)),
    ]),
    steps.map((tick) => svg("text", { x: x(tick), y: height - 5, "text-anchor": "middle" }, number(tick))),
  );
  return { x, y, axes, edge };
}

function range(values, low, high) {
  const known = values.filter((value) => value !== null && value !== undefined);
  let [from, to] = [low ?? Math.min(...known), high ?? Math.max(...known)];
  if (from === to)
    [from, to] = low === null ? [from - (Math.abs(from) || 1) * 0.5, to + (Math.abs(to) || 1) * 0.5] : [from, from + 1];
  const room = (to - from) * 0.06;
  return [low === null ? from - room : from, high === null ? to + room : to];
}

/* `told`: whether what the chart shows is written under its title, or said when the title is pointed at. */
function lineChart(chart, runs, hidden, { width, height, told }) {
  const series = seriesOf(chart, runs, hidden);
  const asked = !told && chart.why ? { tabindex: 0, hint: () => [chart.why] } : {};
  const caption = el("figcaption", {}, el("h4", asked, chart.title), told && el("p", {}, chart.why), legend(chart));
  const figure = el("figure", { class: "chart" }, caption);
  if (!series.length) return figure;
  const xs = [...new Set(series.flatMap((line) => line.x))].sort((a, b) => a - b);
  const spread = xs.length > 1 ? [xs[0], xs.at(-1)] : [xs[0] - 1, xs[0] + 1];
  const ys = series.flatMap((line) => [...line.y, ...line.low, ...line.high]);
  const { x, y, axes, edge } = frame(width, height, spread, range(ys, chart.low, chart.high));
  const cross = svg("line", { class: "cross", y1: edge.top, y2: height - edge.bottom, visibility: "hidden" });
  const picture = svg(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, role: "img", tabindex: 0, "aria-label": spoken(chart, series) },
    axes,
    series.map((line) => drawn(line, x, y)),
    cross,
  );
  pointing(picture, xs, series, x, cross);
  figure.append(picture);
  return figure;
}

function drawn(line, x, y) {
  const at = (values) => line.x.map((step, i) => `${x(step).toFixed(1)},${y(values[i]).toFixed(1)}`).join(" ");
  const many = line.x.length >= 40;
  return svg(
    "g",
    { style: { "--colour": colour(line.run) } },
    line.low.length > 0 &&
      svg("polygon", { class: "band", points: `${at(line.high)} ${at(line.low).split(" ").reverse().join(" ")}` }),
    many && svg("polyline", { class: "raw", points: at(line.y) }),
    svg("polyline", { class: "line", "stroke-dasharray": line.dash, points: at(smooth(line.y)) }),
    line.low.map((low, i) =>
      svg("line", { class: "whisker", x1: x(line.x[i]), x2: x(line.x[i]), y1: y(low), y2: y(line.high[i]) }),
    ),
    !many && line.x.map((step, i) => svg("circle", { class: "dot", cx: x(step), cy: y(line.y[i]), r: 2.2 })),
  );
}

const dash = (pattern) =>
  svg(
    "svg",
    { class: "dash", viewBox: "0 0 22 6", "aria-hidden": "true" },
    svg("line", { x1: 0, x2: 22, y1: 3, y2: 3, "stroke-dasharray": pattern }),
  );

function legend(chart) {
  return (
    chart.lines.length > 1 &&
    el(
      "p",
      { class: "legend" },
      chart.lines.map((line, i) => el("span", {}, dash(DASHES[i]), line.label)),
    )
  );
}

const spoken = (chart, series) =>
  `${chart.title}. ` +
  series
    .map(
      (line) =>
        `${line.name}, ${line.label}: ${number(line.y[0])} at step ${line.x[0]}, ${number(line.y.at(-1))} at step ${line.x.at(-1)}.`,
    )
    .join(" ");

function pointing(picture, xs, series, x, cross) {
  let position = -1;
  const move = (to, left, top) => {
    position = Math.max(0, Math.min(xs.length - 1, to));
    const step = xs[position];
    cross.setAttribute("x1", x(step));
    cross.setAttribute("x2", x(step));
    cross.setAttribute("visibility", "visible");
    const values = series
      .filter((line) => line.x.includes(step))
      .map((line) => {
        const i = line.x.indexOf(step);
        const interval = line.low.length ? ` [${fixed(line.low[i])}, ${fixed(line.high[i])}]` : "";
        return el(
          "div",
          { class: "value", style: { "--colour": colour(line.run) } },
          dash(line.dash),
          el("b", {}, number(line.y[i], 4) + interval),
          el("span", {}, [...new Set([line.name, line.label])].join(" · ")),
        );
      });
    showHint(picture, [el("div", { class: "soft" }, `step ${step}`), ...values], left, top);
  };
  const leave = () => (cross.setAttribute("visibility", "hidden"), hideHint());
  picture.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const at = (event.clientX - box.left) * (picture.viewBox.baseVal.width / box.width);
    const nearest = xs.reduce((best, step, i) => (Math.abs(x(step) - at) < Math.abs(x(xs[best]) - at) ? i : best), 0);
    move(nearest, event.clientX, box.top);
  });
  picture.addEventListener("pointerleave", leave);
  picture.addEventListener("blur", leave);
  picture.addEventListener("keydown", (event) => {
    const way = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (way) (event.preventDefault(), move(position + way));
  });
}

/* Share right against the score, by digit: calibrated scores lie on the diagonal. */
function reliabilityChart(title, found, hidden) {
  const [width, height] = [330, 270];
  const { x, y, axes } = frame(width, height, [0, 9], [0, 1], 9);
  const shown = found.filter(({ run }) => !hidden.has(run));
  const spokenBins = shown
    .map(
      ({ name, bins }) =>
        `${name}: ` + bins.map((bin) => `score ${bin.digit}, ${percent(bin.share)} right of ${bin.count}`).join("; "),
    )
    .join(". ");
  return el(
    "figure",
    { class: "chart" },
    el("figcaption", {}, el("h4", {}, title)),
    svg(
      "svg",
      { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `${title}. ${spokenBins}` },
      axes,
      svg("line", { class: "diagonal", x1: x(0), y1: y(0), x2: x(9), y2: y(1) }),
      shown.map(({ run, name, bins }) =>
        svg(
          "g",
          { style: { "--colour": colour(run) } },
          bins.map((bin) =>
            svg("line", {
              class: "whisker",
              x1: x(9 * bin.promise),
              x2: x(9 * bin.promise),
              y1: y(bin.low),
              y2: y(bin.high),
            }),
          ),
          bins.map((bin) =>
            svg("circle", {
              class: "bubble",
              cx: x(9 * bin.promise),
              cy: y(bin.share),
              r: 3 + Math.min(9, Math.sqrt(bin.count) / 2),
              hint: () => [
                el("b", {}, `${name}: score ${bin.digit}`),
                el(
                  "div",
                  {},
                  `${percent(bin.share)} right [${percent(bin.low)}, ${percent(bin.high)}], promised ${percent(bin.promise)}`,
                ),
                el("div", { class: "soft" }, plural(bin.count, "episode")),
              ],
            }),
          ),
        ),
      ),
    ),
    el("p", { class: "axis" }, "across: the teacher’s score; up: the share right"),
  );
}

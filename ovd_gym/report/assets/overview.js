/* What the runs are, their curves and the calibration of their scores. */

const SMALL = { width: 230, height: 120, told: false };
const GROUPS = {
  Learning: { width: 310, height: 190, told: true },
  Health: SMALL,
  Cost: SMALL,
  "Everything else": SMALL,
};
const FOLDED = "Everything else";

function overview({ runs, charts }) {
  const hidden = new Set(); // runs that are switched off
  const redraw = () => {
    document.getElementById("curves-body").replaceChildren(...curves(charts, runs, hidden));
    document.getElementById("calibration-body").replaceChildren(...calibration(runs, hidden));
  };
  document.getElementById("lead").textContent = lead(runs);
  document
    .getElementById("runs-body")
    .replaceChildren(runsTable(runs, hidden, redraw), ...runs.map((run) => configuration(run, runs.length)));
  redraw();
}

function lead(runs) {
  const [first] = runs;
  if (runs.length > 1) return `${runs.length} runs: ${runs.map((run) => run.name).join(", ")}`;
  const teacher = first.teacher ? `teacher ${first.teacher}` : "no teacher";
  return `arm ${first.arm} · ${teacher} · ${first.steps} of ${first.planned} training steps · seed ${first.seed}`;
}

function runsTable(runs, hidden, redraw) {
  const head = ["run", "student", "environment", "arm", "teacher", "steps", "seed", "held-out accuracy", "reward"];
  const name = (run, number) => (runs.length === 1 ? run.name : toggle(run, number, hidden, redraw));
  const rows = runs.map((run, number) => [
    name(run, number),
    run.student,
    run.env,
    run.arm,
    run.teacher ?? "none",
    run.steps < run.planned ? `${run.steps} of ${run.planned}` : run.steps,
    run.seed,
    accuracies(run),
    run.reward.map((value) => fixed(value)).join(" → ") || "–",
  ]);
  return table(head, rows);
}

function toggle(run, number, hidden, redraw) {
  const change = (event) => {
    event.target.checked ? hidden.delete(number) : hidden.add(number);
    redraw();
  };
  return el(
    "label",
    { class: "toggle", style: { "--colour": colour(number) } },
    el("input", { type: "checkbox", checked: true, change }),
    el("i", { class: "swatch" }),
    run.name,
  );
}

function accuracies({ accuracy }) {
  const said = accuracy.map((row) => `${fixed(row.accuracy)} [${fixed(row.low)}, ${fixed(row.high)}]`);
  return said.length ? `${said.join(" → ")} on ${accuracy.at(-1).episodes}` : "–";
}

function configuration(run, count) {
  const versions = Object.entries(run.versions)
    .map(([name, version]) => `${name} ${version}`)
    .join(" · ");
  return el(
    "details",
    { class: "fold" },
    el("summary", {}, count > 1 ? `Configuration of ${run.name}` : "Configuration"),
    el("pre", {}, run.config),
    el("p", { class: "soft" }, versions),
  );
}

function curves(charts, runs, hidden) {
  return Object.entries(GROUPS).flatMap(([group, shape]) => {
    const drawn = charts.filter((chart) => chart.group === group);
    if (!drawn.length) return [];
    const grid = el(
      "div",
      { class: `grid ${shape.told ? "large" : ""}` },
      drawn.map((chart) => lineChart(chart, runs, hidden, shape)),
    );
    return group === FOLDED
      ? [
          el(
            "details",
            { class: "fold" },
            el("summary", {}, `Everything else that was recorded: ${plural(drawn.length, "metric")}`),
            grid,
          ),
        ]
      : [el("h3", {}, group), grid];
  });
}

function calibration(runs, hidden) {
  const kinds = [
    ["step", "Training episodes"],
    ["eval", "Held-out episodes"],
  ];
  const found = kinds.map(([kind, title]) => [
    title,
    runs.flatMap((run, number) =>
      run.calibration[kind] ? [{ run: number, name: run.name, ...run.calibration[kind] }] : [],
    ),
  ]);
  const drawn = found.filter(([, entries]) => entries.length);
  if (!drawn.length)
    return [el("p", { class: "soft" }, "No teacher scored these episodes, or none of them was graded.")];
  return [
    el(
      "p",
      { class: "soft" },
      "Episodes on this page by the teacher’s score of the whole: the share that got reward 1, with its 95 % Wilson interval. On the dashed line a score means what it promises. A larger dot stands for more episodes.",
    ),
    el(
      "div",
      { class: "grid calibration" },
      drawn.map(([title, entries]) => reliabilityChart(title, entries, hidden)),
      calibrationTable(drawn),
    ),
  ];
}

function calibrationTable(drawn) {
  const head = ["", "scored", "no score", "AUROC", "Spearman", "ECE"];
  const rows = drawn.flatMap(([title, entries]) =>
    entries.map((entry) => [
      [entry.name, el("small", {}, title)],
      entry.count,
      entry.invalid,
      fixed(entry.auroc),
      fixed(entry.spearman),
      fixed(entry.ece),
    ]),
  );
  return table(head, rows);
}

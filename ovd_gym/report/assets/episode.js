/* One episode: its steps coloured by score, or its tokens coloured by mask, advantage or likelihood. */

/* The digit of a score; what more is known of it stands in its hint. */
function badge(score, label, small = false) {
  const known = score && score.value !== null;
  return el(
    "button",
    {
      type: "button",
      class: `badge ${known ? "scored" : ""} ${small ? "small" : ""}`,
      style: known ? { "--u": score.mean / 9 } : {},
      "aria-label": `${label}: ${known ? `score ${score.value} of 9` : score ? `no score, ${score.status}` : "not scored"}`,
      hint: () => verdict(score, label),
    },
    known ? String(score.value) : score ? "?" : "·",
  );
}

function verdict(score, label) {
  if (!score) return [el("b", {}, label), el("div", { class: "soft" }, "not scored")];
  if (score.value === null)
    return [
      el("b", {}, `${label}: no score (${score.status})`),
      score.rationale && el("p", { class: "text" }, score.rationale),
    ];
  const most = Math.max(...(score.probs ?? [1]));
  const bars =
    score.probs &&
    el(
      "div",
      { class: "bars" },
      score.probs.map((p, digit) =>
        el("span", { style: { "--p": p / most, "--u": digit / 9 } }, el("i", {}), String(digit)),
      ),
    );
  const mass = score.mass === null ? "" : `, ${percent(score.mass)} on digits`;
  return [
    el("b", {}, `${label}: ${number(score.mean)} of 9`),
    bars,
    score.probs && el("div", { class: "soft" }, `the teacher’s distribution over the digits${mass}`),
    score.rationale && el("p", { class: "text" }, score.rationale),
  ];
}

const strip = (digits) =>
  el(
    "span",
    { class: "strip", "aria-hidden": "true" },
    [...digits]
      .slice(0, 16)
      .map((digit) => el("i", /\d/.test(digit) ? { class: "scored", style: { "--u": digit / 9 } } : {}, digit)),
    digits.length > 16 && `+${digits.length - 16}`,
  );

/* A view of an episode: {node, show(mode)}; `tokens` is a promise of token texts, or of null. */
function episodeView(body, run, tokens, compact = false) {
  const pane = el("div", { class: "steps" });
  const show = async (mode) =>
    pane.replaceChildren(...(mode === "steps" ? stepsOf(body) : tokensOf(body, run, await tokens, mode)));
  const parts = [heading(body, run, compact), pane, ending(body)];
  return { show, node: el("article", { class: "episode" }, parts) };
}

function heading(body, run, compact) {
  const outcome = body.reward === null ? "no reward" : `reward ${number(body.reward)}`;
  const taught = body.steps.some((step) => step.taught);
  return el(
    "header",
    {},
    badge(body.score, "Whole trajectory"),
    el(
      "div",
      {},
      !compact && el("h3", { class: "text" }, body.question),
      el(
        "p",
        { class: "facts" },
        chip(outcome, body.reward === 1 ? "good" : body.reward === null ? "warn" : "bad"),
        body.status !== "terminated" && chip(body.status, "warn"),
        taught && chip("demonstration", "taught"),
        credits(body, run),
      ),
    ),
  );
}

const chip = (text, kind = "") => el("span", { class: `chip ${kind}` }, text);

function credits(body, run) {
  const known = body.steps.map((step) => step.credit).filter((credit) => credit !== null);
  return (
    known.length > 0 &&
    run.credit &&
    el("span", { class: "soft" }, `${run.credit}${known.length > 1 ? "s" : ""} ${known.map(signed).join(", ")}`)
  );
}

const signed = (value) => (value > 0 ? "+" : "") + fixed(value).replace("-", "−");

function stepsOf(body) {
  if (!body.steps.length) return [el("p", { class: "soft" }, "No step was taken.")];
  return body.steps.map((step, k) => {
    const known = step.score && step.score.value !== null;
    return el(
      "div",
      { class: `step ${known ? "scored" : ""}`, style: known ? { "--u": step.score.mean / 9 } : {} },
      badge(step.score, `Step ${k + 1}`),
      el(
        "div",
        {},
        el(
          "div",
          { class: `said text ${step.taught ? "taught" : ""}` },
          step.text.trim() ? step.text : el("em", { class: "soft" }, "no visible text"),
        ),
        step.score && step.score.value === null && chip(`no score: ${step.score.status}`, "warn"),
        call(step),
        step.feedback && el("div", { class: "heard text" }, el("b", {}, "teacher: "), step.feedback),
      ),
    );
  });
}

/* A tool call, folded: its name and the beginning of what came back. */
function call(step) {
  const result = step.observation || step.error || "";
  if (!step.call && !result) return null;
  const name = step.call ? step.call.name : step.error ? "refused" : "environment";
  const given =
    step.call && Object.keys(step.call.arguments).length > 0 && JSON.stringify(step.call.arguments, null, 1);
  return el(
    "details",
    { class: `call ${step.error ? "refused" : ""}` },
    el("summary", {}, el("b", {}, name), el("span", { class: "preview" }, result.slice(0, 200))),
    given && el("pre", { class: "text" }, given),
    result && el("pre", { class: "text" }, result),
  );
}

function ending(body) {
  const entries = [
    [
      "answer",
      body.answer === null ? el("em", { class: "soft" }, "none given") : el("b", { class: "text" }, body.answer),
    ],
    [
      "gold",
      body.gold.flatMap((gold, i) => [
        i > 0 && el("span", { class: "soft" }, " or "),
        el("span", { class: "text" }, gold),
      ]),
    ],
    body.reason && ["status", el("span", { class: "text" }, `${body.status}: ${body.reason}`)],
  ].filter(Boolean);
  const sampled = body.steps.reduce((sum, { span: [start, end] }) => sum + end - start, 0);
  const teacher = body.teacher && ` · teacher ${body.teacher}${body.privileged ? ", shown the gold answers" : ""}`;
  return el(
    "footer",
    {},
    el(
      "dl",
      {},
      entries.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]),
    ),
    el(
      "p",
      { class: "soft text" },
      `${body.id} · group ${body.group} · task ${body.task} · after ${plural(body.updates, "update")} · ${sampled} sampled of ${plural(body.tokens.length, "token")}`,
      teacher,
    ),
  );
}

/* Tokens ------------------------------------------------------------------------------------------------- */

const KEYS = {
  steps: [],
  mask: [
    ["fed", "prompt, results: never trained"],
    ["sampled", "sampled by the student"],
    ["taught", "a demonstrator’s"],
  ],
  advantage: [
    ["fed", "not trained"],
    ["below", "negative"],
    ["above", "positive; paler towards 0"],
  ],
  likelihood: [
    ["fed", "not sampled"],
    ["rare", "the darker, the less likely when it was sampled"],
  ],
};

/* What the colours of a mode mean. */
function keyOf(mode) {
  const sample = (kind) => el("i", { class: `token ${kind}`, style: { "--w": 1 } }, " a ");
  return KEYS[mode].map(([kind, meaning]) => el("span", {}, sample(kind), meaning));
}

function tokensOf(body, run, texts, mode) {
  const absent = (what) => [el("p", { class: "soft" }, what)];
  if (!texts) return absent("This run folder holds no tokenizer, so its token ids cannot be read.");
  const learned = mode !== "advantage" || body.steps.some((step) => step.credit !== null);
  const note = learned ? [] : absent("Nothing was learned from this episode.");
  return [
    ...note,
    el(
      "div",
      { class: "tokens text" },
      pieces(body).map((piece) => token(piece, run, texts, mode)),
    ),
  ];
}

/* Every token with what is known of it: {id, at, step, k, logprob}. */
function pieces(body) {
  const found = body.tokens.map((id, at) => ({ id, at, step: null }));
  let sampled = 0;
  body.steps.forEach((step, k) => {
    for (let at = step.span[0]; at < step.span[1]; at++)
      Object.assign(found[at], { step, k, logprob: -body.logprobs[sampled++] / 100 });
  });
  return found;
}

function token(piece, run, texts, mode) {
  const { id, step } = piece;
  const text = texts[id] || `⟨${id}⟩`;
  const shown = text.replace(/\n/g, "⏎\n");
  const [kind, weight] = tint(piece, mode);
  return el(
    "span",
    {
      class: `token ${kind}`,
      style: { "--w": weight },
      hint: () => [
        el("b", { class: "text" }, JSON.stringify(text)),
        el("div", { class: "soft" }, `token ${piece.at}, id ${id}`),
        step &&
          el(
            "div",
            {},
            `step ${piece.k + 1}, ${step.taught ? "a demonstrator’s" : `log-probability ${fixed(piece.logprob)}`}`,
          ),
        step && step.credit !== null && run.credit && el("div", {}, `${run.credit} ${signed(step.credit)}`),
        !step && el("div", {}, "fed, not trained"),
      ],
    },
    shown,
  );
}

/* The class of a token's colour, and how strong it is, from 0 to 1. */
function tint({ step, logprob }, mode) {
  if (!step) return ["fed", 0];
  if (mode === "mask") return [step.taught ? "taught" : "sampled", 1];
  if (mode === "likelihood") return step.taught ? ["taught", 1] : ["rare", Math.min(1, -logprob / 5)];
  if (step.credit === null) return ["fed", 0];
  return [step.credit < 0 ? "below" : "above", Math.min(1, Math.abs(step.credit))];
}

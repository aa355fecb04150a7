/* Which episodes are shown, and in which order. A row is one episode of the index, as an object. */

const ROW = ["section", "question", "group", "reward", "score", "digits", "flags"];
const ORDERS = {
  "in order": null,
  "lowest score first": ({ score }) => score,
  "highest score first": ({ score }) => (score === null ? null : -score),
  "lowest reward first": ({ reward }) => reward,
  "largest disagreement first": ({ score, reward }) =>
    score === null || reward === null ? null : -Math.abs(score / 9 - reward),
};

const rowsOf = (index) =>
  index.rows.map((values, number) => {
    const row = Object.fromEntries(ROW.map((name, i) => [name, values[i]]));
    return { ...row, number, when: index.sections[row.section] };
  });

const held = (row, bit) => (row.flags & (1 << bit)) !== 0;
const together = (rows, row) => rows.filter((other) => other.section === row.section && other.group === row.group);

/* Episodes whole, a block of them at a time; and all that can be searched of each. */
function makeShelf(rows, block) {
  const texts = new Map(); // block -> promise of one string an episode
  const blockOf = (number) => Math.floor(number / block);
  const tokens = (number) => load(`tokens-${rows[number].when.run}`);
  const body = async (number) => {
    const bodies = await load(`episodes-${blockOf(number)}`);
    return written(bodies[number % block], await tokens(number));
  };
  const searched = async (first) => {
    const numbers = rows.slice(first, first + block).map(({ number }) => number);
    return (await Promise.all(numbers.map(body))).map(searchable);
  };
  const text = async (number) => {
    const at = blockOf(number);
    if (!texts.has(at)) texts.set(at, searched(at * block));
    return (await texts.get(at))[number % block];
  };
  return { body, text, tokens };
}

/* An episode with its texts as strings: most are kept as their place in the joined texts of its tokens. */
function written(body, texts) {
  const joined = texts ? body.tokens.map((id) => texts[id]).join("") : "";
  const read = (text) => (typeof text === "string" ? text : joined.slice(...text));
  const steps = body.steps.map((step) => ({ ...step, text: read(step.text), observation: read(step.observation) }));
  return { ...body, steps };
}

function searchable(body) {
  const said = body.steps.flatMap((step) => [
    step.text,
    step.observation,
    step.error,
    step.feedback,
    step.score?.rationale,
  ]);
  const rest = [body.id, body.task, body.question, body.answer, ...body.gold, body.reason, body.score?.rationale];
  return [...rest, ...said].join("\n").toLowerCase();
}

/* The rows that meet all criteria, in order; null when `criteria.query` changed while they were searched. */
async function find(rows, criteria, shelf, onProgress) {
  const { run, played, flags, query, order } = criteria;
  const found = [];
  for (const row of rows) {
    const { kind, step } = row.when;
    if (run !== "" && row.when.run !== Number(run)) continue;
    if (played !== "" && played !== kind && played !== `${kind}-${step}`) continue;
    if (![...flags].every((bit) => held(row, bit))) continue;
    if (query) {
      const text = await shelf.text(row.number);
      if (criteria.query !== query) return null;
      if (row.number % 100 === 0) onProgress(row.number);
      if (!text.includes(query)) continue;
    }
    found.push(row);
  }
  const value = ORDERS[order];
  return value ? found.sort((a, b) => (value(a) ?? Infinity) - (value(b) ?? Infinity)) : found;
}

/* Data blocks: JSON, deflated, in base64. A block is unpacked when it is asked for; the latest few are kept. */

const KEPT_BLOCKS = 12;
const unpacked = new Map(); // name -> promise of its value; the one used last comes last

function load(name) {
  const value = unpacked.get(name) ?? unpack(name);
  unpacked.delete(name);
  unpacked.set(name, value);
  if (unpacked.size > KEPT_BLOCKS) unpacked.delete(unpacked.keys().next().value);
  return value;
}

async function unpack(name) {
  const packed = atob(document.getElementById(`block-${name}`).textContent);
  const bytes = Uint8Array.from(packed, (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  return JSON.parse(await new Response(stream).text());
}

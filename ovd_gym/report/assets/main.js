/* Starts the page: what is drawn first stands before this script, the episodes after it. */

document.getElementById("theme").addEventListener("change", (event) => {
  document.documentElement.dataset.theme = event.target.value;
});

const ready = new Promise((resolve) => document.addEventListener("DOMContentLoaded", resolve));
load("overview").then(async (found) => {
  overview(found);
  await ready;
  await episodes(found);
  document.documentElement.dataset.ready = "";
});

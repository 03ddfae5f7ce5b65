const sliders = ["phi", "base", "alpha", "beta", "gamma", "budget", "input", "wire", "kind"];
let asked = 0;

async function ask() {
  const number = ++asked, words = new URLSearchParams(sliders.map((id) => [id, at(id).value]));
  for (const output of at("live").querySelectorAll("output")) output.textContent = at(output.htmlFor.value).value;
  const found = await (await fetch(`quote?${words}`)).json();
  if (number !== asked) return; // a later move of a slider has been asked about since
  if (found.error) {
    at("answer").textContent = found.error;
    return;
  }
  const said = found.priced[term()] ?? Object.values(found.priced)[0];
  at("answer").textContent = `${found.network}: ${found.plan}. ${whole(found.relus)} ReLUs, ${whole(Math.round(found.macs / 1e6))} M MACs, ${short(said.seconds.offline)} s offline and ${short(said.seconds.online)} s online, ${short(said.bytes.total)}B. ${said.advice}`;
  for (const [id, at_] of [["protocol", 0], ["link", 1]]) {
    const value = Object.keys(found.priced)[0].split(", ")[at_];
    if (![...at(id).options].some((option) => option.value === value)) at(id).append(new Option(value, value));
    at(id).value = value;
  }
  at("explore").hidden = false;
  show(found);
}

for (const value of data.protocols) at("kind").append(new Option(value, value));
for (const id of sliders) at(id).addEventListener("input", ask);
at("live").addEventListener("submit", (event) => event.preventDefault());
ask();

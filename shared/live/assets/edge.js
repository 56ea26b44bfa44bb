// The edge's page.
"use strict";

const element = (id) => document.getElementById(id);

const drawConfidence = live.chart(element("confidence"), () => ({
  height: 190,
  legend: { live: false },
  scales: { x: { time: false, range: (_, low, high) => [0.75, (high || 1) + 0.25] }, y: { range: [0, 1] } },
  axes: [{ incrs: [1, 2, 5, 10, 20, 50], space: 30, values: (_, ticks) => ticks.map((tick) => `t = ${tick - 1}`) }, { size: 46 }],
  series: [
    { label: "confidence", stroke: live.colour("one"), width: 2, points: { show: true, size: 7 } },
    { label: "alpha", stroke: live.colour("two"), width: 2, dash: [6, 4], points: { show: false } },
    {
      label: "exit", stroke: live.colour("good"), paths: () => null,
      points: { show: true, size: 16, width: 3 },
    },
  ],
}));

const headline = ({ end, sample, timesteps, alpha, verdicts }) => {
  const last = verdicts.at(-1);
  if (end === null) {
    const word = last ? `${last.name}, ${last.confidence.toFixed(3)} so far` : "no verdict yet";
    return `Sample ${sample}: ${word}`;
  }
  const exit = end.timesteps_used - 1;
  const why = exit < alpha.length ? `above alpha ${alpha[exit].toFixed(3)}` : "at the last timestep";
  return (
    `Sample ${sample}: ${end.name}, confidence ${end.confidence.toFixed(3)} ${why}, after ` +
    `${end.timesteps_used} of ${timesteps} timesteps, ${live.formats.seconds(end.total_seconds)}, ` +
    `${live.formats.bytes(end.payload_bytes)} (${end.placement})`
  );
};

const drawCodes = ({ end, codes, packets, code_shape: shape, timesteps }) => {
  const host = element("codes");
  const exit = end === null ? -1 : end.timesteps_used - 1;
  while (host.children.length < timesteps) {
    const figure = document.createElement("figure");
    const canvas = document.createElement("canvas");
    canvas.className = "code";
    figure.append(canvas, document.createElement("figcaption"));
    host.append(figure);
  }
  [...host.children].forEach((figure, timestep) => {
    const [canvas, caption] = figure.children;
    const packet = packets.find((each) => each.timestep === timestep);
    const known = timestep < codes.length;
    if (known) live.bits(canvas, codes[timestep], shape);
    else canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
    const sent = packet ? live.formats.bytes(packet.payload_bytes) : known ? "computed" : "not computed";
    caption.textContent = `t = ${timestep}: ${sent}${timestep === exit ? ", exit" : ""}`;
    figure.className = timestep === exit ? "exit" : known ? "" : "later";
  });
  host.hidden = codes.length === 0;
};

const hold = element("hold");
const isHeld = () => hold.getAttribute("aria-pressed") === "true";
hold.addEventListener("click", () => hold.setAttribute("aria-pressed", String(!isHeld())));

const drawSample = (sample) => {
  if (isHeld()) return;
  element("headline").textContent = headline(sample);
  if (sample.picture) element("picture").src = `data:image/png;base64,${sample.picture}`;
  drawCodes(sample);
  const { end, verdicts, alpha, timesteps } = sample;
  const steps = Array.from({ length: timesteps }, (_, timestep) => timestep);
  const confidence = steps.map((t) => verdicts.find((each) => each.timestep === t)?.confidence ?? null);
  const exit = steps.map((t) => (end !== null && t === end.timesteps_used - 1 ? end.confidence : null));
  drawConfidence([steps.map((t) => t + 1), confidence, steps.map((t) => alpha[t] ?? null), exit]);
};

const addRoundTrip = live.history(element("round-trips"), [["round trip", "one"]], "seconds");
const addPayload = live.history(element("payload"), [["payload", "one"]], "rate");
let before = null;

const drawFigures = (figures) => {
  live.fill(document, figures);
  element("trouble").textContent = figures.link.trouble;
  if (before !== null && figures.time_seconds > before.time_seconds) {
    const trips = figures.link.round_trips - before.link.round_trips;
    const seconds = figures.link.round_trip_sum_seconds - before.link.round_trip_sum_seconds;
    addRoundTrip(figures.time_seconds, [trips > 0 ? seconds / trips : null]);
    const bytes = figures.bytes.payload - before.bytes.payload;
    addPayload(figures.time_seconds, [bytes / (figures.time_seconds - before.time_seconds)]);
  }
  before = figures;
};

live.listen({ sample: drawSample, edge: drawFigures });

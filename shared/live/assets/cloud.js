// The cloud's page.
"use strict";

const element = (id) => document.getElementById(id);

const lines = [["streams", "two"], ["slots in use", "one"], ["waiting timesteps", "bad"]];
const addLoad = live.history(element("load"), lines, "count");
const addTimesteps = live.history(element("timesteps"), [["timesteps per second", "one"]], "count");
const cards = new Map();
let before = null;

const drawBatches = (host, batches) =>
  live.chart(host, () => ({
    height: 150,
    legend: { show: false },
    scales: {
      x: { time: false, range: [-0.6, batches.length - 0.4] },
      y: { range: (_, low, high) => [0, Math.max(1, high || 0) * 1.1] },
    },
    axes: [
      { incrs: [1], space: 20, values: (_, ticks) => ticks.map((tick) => batches[tick]?.up_to ?? "") },
      { size: 60 },
    ],
    series: [{
      label: "calls", stroke: live.colour("one"), fill: live.colour("one"), points: { show: false },
      paths: uPlot.paths.bars({ size: [0.8, 60] }),
    }],
  }));

const addCard = (model) => {
  const card = element("model").content.firstElementChild.cloneNode(true);
  card.dataset.model = model.name;
  element("main").append(card);
  const draw = drawBatches(card.querySelector(".chart"), model.batches);
  cards.set(model.name, { card, draw });
};

const sum = (models, key) => models.reduce((total, model) => total + model[key], 0);

const drawFigures = (figures) => {
  const { models, time_seconds: now } = figures;
  for (const part of document.querySelectorAll(".server")) live.fill(part, figures);
  for (const model of models) {
    if (!cards.has(model.name)) addCard(model);
    const { card, draw } = cards.get(model.name);
    live.fill(card, model);
    draw([model.batches.map((_, index) => index), model.batches.map((bar) => bar.calls)]);
  }
  addLoad(now, [figures.streams + figures.image_streams, sum(models, "slots_in_use"), sum(models, "queue")]);
  if (before !== null && now > before.time_seconds) {
    const computed = sum(models, "computed") - sum(before.models, "computed");
    addTimesteps(now, [computed / (now - before.time_seconds)]);
  }
  before = figures;
};

live.listen({ cloud: drawFigures });

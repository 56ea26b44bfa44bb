// What both pages share: events in, numbers and charts out. Text always goes in as text, never as
// markup.
"use strict";

const live = (() => {
  const NONE = "–";

  const scaled = (value, units, step) => {
    let index = 0;
    while (Math.abs(value) >= step && index < units.length - 1) {
      value /= step;
      index += 1;
    }
    const digits = index === 0 && Number.isInteger(value) ? 0 : Math.abs(value) < 10 ? 2 : 1;
    return `${value.toFixed(digits)} ${units[index]}`;
  };

  const formats = {
    text: (value) => String(value),
    count: (value) => value.toLocaleString("en"),
    mean: (value) => value.toFixed(2),
    bytes: (value) => scaled(value, ["B", "kB", "MB", "GB", "TB"], 1000),
    rate: (value) => scaled(value, ["B/s", "kB/s", "MB/s", "GB/s"], 1000),
    seconds: (value) =>
      Math.abs(value) < 1 ? scaled(value * 1e6, ["µs", "ms"], 1000) : scaled(value, ["s"], Infinity),
    joules: (value) => scaled(value * 1e6, ["µJ", "mJ", "J", "kJ"], 1000),
    watts: (value) =>
      Object.entries(value).map(([source, watts]) => `${source} ${watts.toFixed(2)} W`).join(", "),
    ratio: (value) => `${value.toLocaleString("en", { maximumFractionDigits: value < 10 ? 2 : 0 })}x less`,
    shape: (value) => value.join(" x "),
    digest: (value) => value.slice(0, 12),
    counts: (value) =>
      Object.entries(value).map(([name, count]) => `${name} ${formats.count(count)}`).join(", "),
  };

  const at = (figures, path) => path.split(".").reduce((part, key) => part[key], figures);

  /** Put figures where `data-at` says, written as `data-as` says; `value` keeps them exactly. */
  const fill = (root, figures) => {
    for (const element of root.querySelectorAll("[data-at]")) {
      const value = at(figures, element.dataset.at);
      const written = (value === null ? "" : formats[element.dataset.as](value)) || NONE;
      if (element.textContent !== written) element.textContent = written;
      element.value = typeof value === "object" ? JSON.stringify(value) : String(value);
    }
  };

  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  const charts = new Map();
  const sizes = new ResizeObserver((entries) => {
    for (const { target } of entries) {
      const { chart } = charts.get(target);
      if (chart.width !== target.clientWidth) chart.setSize({ width: target.clientWidth, height: chart.height });
    }
  });

  const build = (host) => {
    const { options, data, chart } = charts.get(host);
    if (chart) chart.destroy();
    const line = { stroke: colour("line"), width: 1 };
    const axis = (more) => ({
      stroke: colour("quiet"), grid: line, ticks: line, font: "12px system-ui", ...more,
    });
    const { axes, series, height, ...others } = options();
    const built = new uPlot(
      {
        width: host.clientWidth, height, cursor: { show: false },
        axes: axes.map(axis), series: [{}, ...series], ...others,
      },
      data, host,
    );
    charts.set(host, { options, data, chart: built });
  };

  /** Draw a chart; `options` is asked again when the colours change. */
  const chart = (host, options) => {
    const series = options().series.length;
    charts.set(host, { options, data: [[], ...Array.from({ length: series }, () => [])] });
    build(host);
    sizes.observe(host);
    return (data) => {
      charts.get(host).data = data;
      charts.get(host).chart.setData(data);
    };
  };

  /** Draw what was over time: returns a function that takes seconds and one value per line. */
  const history = (host, lines, format) => {
    const KEPT = 240;
    const data = [[], ...lines.map(() => [])];
    const draw = chart(host, () => ({
      height: 170,
      legend: { live: false },
      scales: { x: { time: false }, y: { range: (_, low, high) => [0, Math.max(high || 0, 1e-9) * 1.1] } },
      axes: [
        { values: (_, ticks) => ticks.map((tick) => `${tick} s`) },
        { size: 70, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : formats[format](tick))) },
      ],
      series: lines.map(([label, name]) => ({ label, stroke: colour(name), width: 2, spanGaps: true, points: { show: false } })),
    }));
    let began = null;
    return (seconds, values) => {
      began ??= seconds;
      [seconds - began, ...values].forEach((value, index) => {
        data[index].push(value);
        if (data[index].length > KEPT) data[index].shift();
      });
      draw(data);
    };
  };

  /** Draw bits, `[C, H, W]`, packed and in base64, the channels side by side. */
  const bits = (canvas, packed, [channels, height, width]) => {
    const bytes = Uint8Array.from(atob(packed), (char) => char.charCodeAt(0));
    const columns = Math.ceil(Math.sqrt(2 * channels));
    const rows = Math.ceil(channels / columns);
    canvas.width = columns * (width + 1) - 1;
    canvas.height = rows * (height + 1) - 1;
    const context = canvas.getContext("2d");
    const [on, off] = [colour("one"), colour("page")];
    for (let index = 0; index < channels * height * width; index += 1) {
      const channel = Math.floor(index / (height * width));
      const place = index % (height * width);
      const set = (bytes[index >> 3] >> (7 - (index & 7))) & 1;
      context.fillStyle = set ? on : off;
      context.fillRect(
        (channel % columns) * (width + 1) + (place % width),
        Math.floor(channel / columns) * (height + 1) + Math.floor(place / width), 1, 1,
      );
    }
  };

  /** Listen for events until the page is left; says in `#state` whether they come. */
  const listen = (handlers) => {
    const state = document.getElementById("state");
    const say = (text, kind) => {
      state.textContent = text;
      state.className = `chip ${kind}`;
    };
    const events = new EventSource("events");
    events.onopen = () => say("live", "good");
    events.onerror = () =>
      say(events.readyState === EventSource.CLOSED ? "refused: reload to try again" : "no answer; trying again", "bad");
    for (const [name, handle] of Object.entries(handlers)) {
      events.addEventListener(name, (event) => handle(JSON.parse(event.data)));
    }
  };

  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    charts.forEach((_, host) => build(host));
  });

  return { fill, chart, history, bits, colour, listen, formats };
})();

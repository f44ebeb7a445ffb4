// The page is complete without this. Here are the read-out under the pointer, the time in the reader's
// zone, and reading the page again while the run goes on.
"use strict";
const number = value => {
  const size = Math.abs(value);
  if (size && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace(/\.?0*e\+?/, "e");
  return String(+value.toPrecision(4));
};
for (const chart of document.querySelectorAll(".chart")) {
  const pair = key => chart.dataset[key].split(" ").map(Number);
  const [x0, x1] = pair("x"), [y0, y1] = pair("y");
  const plot = chart.querySelector(".plot"), output = chart.querySelector("output");
  const rule = document.createElement("hr");
  const lines = [...chart.querySelectorAll("polyline.line")].map(line => ({
    label: line.dataset.label,
    points: line.getAttribute("points").split(" ").filter(Boolean).map(point => point.split(",").map(Number)),
  }));
  const value = y => {
    const at = y0 + (1 - y / 1e4) * (y1 - y0);
    return number(chart.dataset.log === "1" ? 10 ** at : at) + chart.dataset.unit;
  };
  plot.addEventListener("pointermove", event => {
    const box = plot.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width * 1e4;
    const nearest = lines.filter(line => line.points.length).map(({ label, points }) => ({
      label,
      point: points.reduce((a, b) => Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a),
    }));
    if (!nearest.length) return;
    const at = nearest[0].point[0];
    rule.style.left = at / 100 + "%";
    plot.append(rule);
    const step = Math.round(x0 + at / 1e4 * (x1 - x0)).toLocaleString("en");
    output.textContent = `step ${step}: ` + nearest.map(({ label, point }) => `${label} ${value(point[1])}`.trim()).join(", ");
  });
  plot.addEventListener("pointerleave", () => {
    rule.remove();
    output.textContent = "";
  });
}
const written = Number(document.body.dataset.written) * 1000;
const time = document.querySelector(".written time"), age = document.querySelector(".written span");
time.textContent = new Date(written).toLocaleString();
if ("running" in document.body.dataset) {
  const tell = () => {
    const minutes = Math.floor((Date.now() - written) / 60000);
    const late = minutes >= 30;
    age.className = late ? "late" : "";
    age.textContent = minutes < 1 ? "" : `, ${minutes} min ago` + (late ? ": is it still running?" : "");
  };
  tell();
  setInterval(tell, 20000);
  setInterval(() => { if (!document.hidden) location.reload(); }, 60000);
}

import test from "ava";
import { type Browser, chromium, type Page } from "playwright-core";
import { openOnnxBackend } from "#agent/backend/onnx.js";
import { trainingCases } from "#test/backend/support/training-cases.js";
import { distance, runTraining } from "#test/backend/support/training-run.js";
import { openSite } from "./support/site.js";

const cases = trainingCases();
const FLAGS = ["no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync"];
const QUIET = ["disable-background-networking", "disable-component-update"];

let site: Awaited<ReturnType<typeof openSite>>;
let browser: Browser;
const closers: (() => unknown)[] = [];
test.before(async () => {
  site = await openSite(cases);
  closers.push(site.close);
  browser = await chromium.launch({
    executablePath: "/usr/bin/chromium",
    args: [...FLAGS, ...QUIET].map((flag) => `--${flag}`),
  });
  closers.push(() => browser.close());
});
test.after.always(async () => {
  for (const close of closers.reverse()) await close();
});

/** A new page at the site, which reports what goes wrong in it. */
async function openPage(problems: string[]): Promise<Page> {
  const page = await browser.newPage();
  page.on("pageerror", (error) => problems.push(error.message));
  page.on("console", (message) => problems.push(message.text()));
  page.on("response", (response) => {
    if (!response.ok()) problems.push(`${response.status()} ${response.url()}`);
  });
  await page.goto(site.url);
  return page;
}

const trainIn = (page: Page, index: number, threads: number): Promise<{ losses: number[]; weights: number[] }> =>
  page.evaluate(
    `import("#test/web/support/page-training.js").then(({ trainInPage }) => trainInPage("/cases/${index}", ${threads}))`,
  );

for (const { threads, graphs } of [
  { threads: 1, graphs: cases.length },
  { threads: 2, graphs: 2 },
]) {
  test.serial(`Chromium (threads: ${threads}) trains the same graphs to the native losses and weights`, async (t) => {
    const problems: string[] = [];
    const page = await openPage(problems);
    const native = await openOnnxBackend({ threads: 1 });
    let worst = 0;
    for (const [index, one] of cases.slice(0, graphs).entries()) {
      const got = await trainIn(page, index, threads);
      const expected = await runTraining(native, one);
      t.is(got.losses.length, 20);
      const apart = Math.max(...got.losses.map((loss, i) => Math.abs(loss - (expected.losses[i] ?? NaN))));
      t.true(apart < 1e-4, `${one.name}: ${apart}`);
      const between = distance(Float32Array.from(got.weights), expected.state.weights);
      t.true(between < 1e-4, `${one.name}: ${between}`);
      worst = Math.max(worst, apart);
    }
    t.log(`${graphs} graphs, largest difference of a loss ${worst.toExponential(2)}`);
    t.deepEqual(problems, []);
    await page.close();
  });
}

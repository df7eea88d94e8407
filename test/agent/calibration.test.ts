import test from "ava";
import { openWorkbench } from "#agent/backend/onnx.js";
import { reportDevice } from "#agent/device-report.js";
import { timeNodes } from "#agent/backend/node-timing.js";
import { predictStep } from "#agent/step-prediction.js";
import { stepOptions } from "#agent/step-timing.js";
import { parseModelConfig } from "#common/graph/config.js";
import { buildTrainGraph } from "#common/graph/train.js";

const [width, layers, vocabSize, contextLength] = [32, 2, 64, 16];
const parsed = parseModelConfig({ family: "gpt2", vocabSize, contextLength, layers, heads: 2, width });
if (!parsed.ok) throw new Error("the test's own config cannot be built");
const { config } = parsed;
const bench = openWorkbench({ threads: 1 });

test.serial("a step's prediction counts every linear layer's products, forward and both ways back", async (t) => {
  const [batch, seqLen] = [3, 16];
  const step = await predictStep(bench, config, { batch, seqLen, variant: {} });
  const gemms = step.classes.filter(({ op }) => op === "Gemm");
  const flops = gemms.reduce((sum, one) => sum + one.count * one.flops, 0);
  const linear = 6 * batch * seqLen * (12 * width ** 2 * layers + width * vocabSize);
  t.true(Math.abs(flops / linear - 1) < 0.01, `${flops} of ${linear}`);
  t.true(step.classes.every(({ ms, bytes }) => ms >= 0 && bytes > 0));
  t.true(
    step.classes.reduce((sum, { count }) => sum + count, 0) > 2 * step.classes.length,
    "layers share their classes",
  );
  t.true(step.stepMs > 0);
  // Products as small as these may take no more than what a call itself was found to take.
  t.true(step.productShare >= 0 && step.productShare <= 1, String(step.productShare));
  t.is(step.tokensPerSecond, (1000 * batch * seqLen) / step.stepMs);
});

test.serial("where a step is run in lanes its nodes are those of a lane, and count for all lanes", async (t) => {
  const options = stepOptions({ batch: 4, seqLen: 16, variant: {} });
  const classes = await timeNodes(openWorkbench({ threads: 2 }), buildTrainGraph(config, options));
  const gemms = classes.filter(({ op }) => op === "Gemm");
  const flops = gemms.reduce((sum, one) => sum + one.count * one.flops, 0);
  const linear = 6 * 4 * 16 * (12 * width ** 2 * layers + width * vocabSize);
  t.true(Math.abs(flops / linear - 1) < 0.01, `${flops} of ${linear}`);
  t.true(
    gemms.some(({ inputs }) => inputs[0]?.[0] === 2 * 16 && inputs[0][1] === width),
    "half of the rows",
  );
  t.true(
    classes.some(({ op, ms }) => op === "AdamW" && ms > 0),
    "AdamW is among them",
  );
});

test.serial("a device's report has each model in both modes, and leaves out what its memory cannot hold", async (t) => {
  const huge = { ...config, vocabSize: 2 ** 40 };
  const seen: string[] = [];
  const models = [
    { name: "tiny", config, batch: 1, seqLen: 8 },
    { name: "huge", config: huge, batch: 1, seqLen: 8 },
  ];
  const report = await reportDevice(bench, 1, models, (name, mode) => seen.push(`${name} ${mode}`));
  t.deepEqual(seen, ["tiny full", "tiny lora"]);
  t.deepEqual(
    report.models.map(({ model, mode }) => `${model} ${mode}`),
    seen,
  );
  t.true(report.models.every(({ tokensPerSecond }) => tokensPerSecond > 0 && tokensPerSecond < 1e9));
  t.true(report.products.every(({ gflops, operands }) => gflops > 0 && operands.length === 2));
  t.regex(report.skipped.join(), /^huge: /);
  t.true(report.bandwidthBytesPerSecond > 1e8);
  t.true(report.machine.memoryBytes > 1e6);
});

import { spawnSync } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "ava";
import { openBackend } from "#agent/backend/open.js";
import { describeAbsence, isProvider, PROVIDERS } from "#agent/backend/providers.js";
import { checkOptions } from "#agent/options.js";
import { CodedError } from "#common/adapters/coded-error.js";

/** A provider that no build of this system has. */
const foreign = process.platform === "win32" ? "coreml" : "dml";

test("the processor is the provider if none is named, and WebAssembly is everywhere", async (t) => {
  t.is((await openBackend({ threads: 1 }, process)).name, "onnxruntime-cpu");
  t.is((await openBackend({ threads: 1, provider: "wasm" }, process)).name, "onnxruntime-wasm");
});

for (const provider of PROVIDERS) {
  test(`provider ${provider} computes, or is refused with what there is and a remedy`, async (t) => {
    const opened = await openBackend({ threads: 1, provider }, { platform: "plan9", arch: "mips" }).catch(
      (error: unknown) => error,
    );
    if (!(opened instanceof Error)) {
      t.not(provider, foreign);
      return;
    }
    t.false(provider === "cpu" || provider === "wasm", opened.message);
    t.true(opened instanceof CodedError && opened.code === "PROVIDER_ABSENT");
    t.regex(
      opened.message,
      new RegExp(`^provider ${provider} cannot be used on plan9-mips: .+\\. Available here: cpu, `),
    );
    t.regex(opened.message, /Available here: .*wasm\. It needs .+\.$/);
    t.false(opened.message.includes("onnxruntime_src"), opened.message);
  });
}

test("an absence is told in one line", (t) => {
  const line = describeAbsence({
    provider: "webgpu",
    platform: "linux",
    arch: "x64",
    available: ["cpu", "wasm"],
    reason: "/onnxruntime_src/webgpu_context.cc:136 f()::<lambda()> a == B::C was false. No\nadapter.\n",
  });
  t.regex(
    line,
    /^provider webgpu cannot be used on linux-x64: No adapter\. Available here: cpu, wasm\. It needs .+\.$/,
  );
});

test("an unknown provider is refused with the known ones", (t) => {
  t.false(isProvider("tpu"));
  const problems = checkOptions({ dataset: {}, stateDir: "s", provider: "tpu" });
  t.deepEqual(problems, ['--provider "tpu": use one of cpu, cuda, coreml, dml, webgpu, wasm']);
  for (const provider of PROVIDERS) t.deepEqual(checkOptions({ dataset: {}, stateDir: "s", provider }), []);
});

test("an agent whose provider is absent ends with the code of wrong options", (t) => {
  const stateDir = mkdtempSync(join(tmpdir(), "shoal-provider-"));
  t.teardown(() => rmSync(stateDir, { recursive: true }));
  const flags = ["dist/agent/main.js", "--state-dir", stateDir, "--provider", foreign];
  const { status, stderr, stdout } = spawnSync(process.execPath, flags, { encoding: "utf8" });
  t.is(status, 64);
  t.regex(stderr + stdout, new RegExp(`provider ${foreign} cannot be used on ${process.platform}-${process.arch}`));
});

import { execFile } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, statSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import test from "ava";
import { CLI } from "../fleet/fleet.js";

const run = promisify(execFile);

test("keys init makes keys once and a configuration nats-server takes", async (t) => {
  const dir = mkdtempSync(join(tmpdir(), "shoal-keys-"));
  t.teardown(() => rmSync(dir, { recursive: true, force: true }));
  const args = [CLI, "keys", "init", "--dir", dir, "--nats-data", join(dir, "data"), "--nats-port", "4333", "--json"];
  const first = JSON.parse((await run(process.execPath, args)).stdout) as Record<string, string>;
  const trust = readFileSync(first["keys"] ?? "", "utf8");
  await run(process.execPath, [...args, "--websocket-port", "4334"]);
  t.is(readFileSync(first["keys"] ?? "", "utf8"), trust, "keys that exist stay");
  for (const file of Object.values(first)) t.is(statSync(file).mode & 0o077, 0, `${file} is its owner's only`);
  await t.notThrowsAsync(run("nats-server", ["-c", first["natsConfig"] ?? "", "-t"]));
  await t.throwsAsync(run(process.execPath, [CLI, "keys", "init", "--dir", dir, "--nats-port", "70000"]), {
    message: /must be a whole number from 1 to 65535/,
  });
});

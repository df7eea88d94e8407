import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import test from "ava";
import { SystemClock } from "#common/adapters/memory/clock.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { NatsBlobStore } from "#common/adapters/nats/blob-store.js";
import { NatsLink } from "#common/adapters/nats/connection.js";
import type { TrustRoot } from "#common/adapters/nats/credentials.js";
import { credsPaths } from "#common/adapters/nats/keys.js";
import { NatsUpdateLog } from "#common/adapters/nats/update-log.js";
import { GATEWAY_LABEL, SITE_LABEL } from "#common/domain/site.js";
import { decodeUpdate } from "#common/tensor/chunk.js";
import { codecByName, type Codec } from "#common/tensor/codec.js";
import { fromBytes } from "#common/tensor/flat.js";
import type { RoundWithResult } from "#proto/shoal/v1/job_service.js";
import { addressesJob, writeAddresses } from "../fleet/addresses.js";
import { Fleet, unary } from "../fleet/fleet.js";
import { Recorder } from "../fleet/recorder.js";
import { freePort } from "../support/servers.js";

const SITES = ["pier", "dock"] as const;
const ROUNDS = 2;
const root = mkdtempSync(join(tmpdir(), "shoal-site-"));
const fp32 = codecByName("fp32") as Codec;
const links: NatsLink[] = [];
/** The wide area link of each site. */
const wan = new Map<string, Recorder>();
const ports = new Map<string, number>();
const restarts = new Map<string, () => void>();
let fleet: Fleet;
let isUp = false;

async function linkTo(url: string, creds: string): Promise<NatsLink> {
  const link = await NatsLink.connect({
    servers: [url],
    creds,
    name: "test",
    log: new MemoryLog(),
    clock: new SystemClock(),
  });
  links.push(link);
  return link;
}

/** The update of a device in a log, decoded. */
async function updateIn(
  log: NatsUpdateLog,
  round: string,
  device: string,
): Promise<{ delta: Float32Array; tokens: number }> {
  const commits = (await log.commits(round)).filter((commit) => commit.device === device);
  const manifest = commits[0]?.manifest;
  if (manifest === undefined) throw new Error(`${device} has no commit of ${round}`);
  const chunks = await Promise.all(manifest.chunkSeqs.map((seq) => log.readChunk(seq)));
  return {
    delta: decodeUpdate(
      chunks.map((chunk) => chunk?.bytes ?? new Uint8Array(0)),
      manifest.values,
      fp32,
    ),
    tokens: manifest.tokens,
  };
}

async function siteLog(site: string): Promise<NatsUpdateLog> {
  const { serviceCreds } = JSON.parse(
    readFileSync(join(fleet.stateOf(`${site}-gate`), "site/trust.json"), "utf8"),
  ) as TrustRoot;
  return new NatsUpdateLog(await linkTo(`nats://127.0.0.1:${ports.get(site) ?? 0}`, serviceCreds));
}

async function rounds(job: string): Promise<RoundWithResult[]> {
  const listed = await fleet.withJobs((jobs) =>
    unary(jobs, jobs.listRounds.bind(jobs), { job, pageSize: 100, pageToken: "" }),
  );
  return listed.rounds;
}

test.before(async () => {
  for (const site of SITES) {
    wan.set(site, await Recorder.open());
    ports.set(site, await freePort());
  }
  fleet = await Fleet.start({
    dir: join(root, "shoal"),
    env: { SHOAL_HEARTBEAT_MS: "500", SHOAL_LOG_RETAIN_ROUNDS: "0" },
  });
  isUp = true;
  const folders = writeAddresses(join(root, "data"), 5);
  let folder = 0;
  for (const site of SITES) {
    const recorder = wan.get(site) as Recorder;
    recorder.target = fleet.context().natsUrl;
    const listen = `127.0.0.1:${ports.get(site) ?? 0}`;
    const gateToken = await fleet.token({ [SITE_LABEL]: site, [GATEWAY_LABEL]: "true" });
    const start = (): void => void fleet.startGateway({ name: `${site}-gate`, listen, via: recorder.url }, gateToken);
    restarts.set(site, start);
    start();
    const token = await fleet.token({ [SITE_LABEL]: site });
    for (const n of [1, 2]) {
      const setup = { name: `${site}-${n}`, dataset: "sotu", dataDir: folders[folder++] ?? "", via: listen };
      // One of each pair is slow: a gateway that is killed in between holds half of its site.
      fleet.startDevice({ ...setup, ...(n === 2 ? { throttle: 0.3 } : {}) }, token);
    }
  }
  fleet.startDevice({ name: "lone", dataset: "sotu", dataDir: folders[folder] ?? "" }, await fleet.token());
  await fleet.waitForDevices(7);
});

test.after.always(async () => {
  for (const link of links) await link.close();
  if (isUp) await fleet.stop();
  for (const recorder of wan.values()) await recorder.close();
  rmSync(root, { recursive: true, force: true });
});

test.serial("two sites and a lone device train a job, through the sudden death of a gateway", async (t) => {
  const manifest = JSON.parse(addressesJob("sites", { rounds: ROUNDS, devices: 5, steps: 6, width: 128 })) as {
    spec: Record<string, unknown>;
  };
  manifest.spec["strategy"] = { name: "fedavg" };
  manifest.spec["codec"] = { name: "fp32", errorFeedback: false };
  await fleet.apply(JSON.stringify(manifest));
  const gate = fleet.gateway("pier-gate");
  const until = Date.now() + 240_000;
  while (!fleet.printed("pier-gate").includes("a member's update is here") && Date.now() < until) await sleep(20);
  gate?.kill("SIGKILL");
  t.false(fleet.printed("pier-gate").includes("is committed"), "killed before the site's update was sent");
  restarts.get("pier")?.();
  const job = await fleet.waitForJob("sites", 300_000);
  t.is(job.status?.phase, "Completed", fleet.lastWords());
});

test.serial("every round has one update a site and counts every device once", async (t) => {
  for (const { round, result } of await rounds("sites")) {
    t.is(round?.status?.attempt, 0, "planned once");
    t.deepEqual(result?.refused, []);
    const seen = (result?.folded ?? []).map(({ manifest }) => [
      manifest?.device,
      ...(manifest?.members ?? []).map(({ device }) => device).sort(),
    ]);
    t.deepEqual(seen.sort(), [["dock-gate", "dock-1", "dock-2"], ["lone"], ["pier-gate", "pier-1", "pier-2"]]);
  }
});

test.serial("the weights are those of flat aggregation of the same updates, but for rounding", async (t) => {
  const { natsUrl } = fleet.context();
  const hub = await linkTo(natsUrl, readFileSync(credsPaths(join(fleet.options.dir, "keys")).service, "utf8"));
  const blobs = new NatsBlobStore(hub);
  const logs = new Map([
    ["lone", new NatsUpdateLog(hub)],
    ["pier", await siteLog("pier")],
    ["dock", await siteLog("dock")],
  ]);
  const devices = ["pier-1", "pier-2", "dock-1", "dock-2", "lone"];
  for (const { round, result } of (await rounds("sites")).slice(0, ROUNDS)) {
    const name = round?.metadata?.name ?? "";
    const base = fromBytes((await blobs.get(round?.spec?.task?.weights?.digest ?? "")) as Uint8Array);
    const weights = fromBytes((await blobs.get(result?.weights?.digest ?? "")) as Uint8Array);
    const updates = await Promise.all(
      devices.map((device) => updateIn(logs.get(device.split("-")[0] ?? "") as NatsUpdateLog, name, device)),
    );
    const total = updates.reduce((sum, { tokens }) => sum + tokens, 0);
    t.is(result?.tokens, total);
    let worst = 0;
    let moved = 0;
    for (let i = 0; i < base.length; i++) {
      const flat = updates.reduce(
        (sum, { delta, tokens }) => sum + ((delta[i] as number) * tokens) / total,
        base[i] as number,
      );
      const largest = Math.max(...updates.map(({ delta }) => Math.abs(delta[i] as number)));
      // The site's mean and the new weight are each rounded to fp32 once: half a unit in the last place of either.
      const allowed = 2 ** -24 * (largest + Math.abs(flat)) + 2 ** -50;
      worst = Math.max(worst, Math.abs((weights[i] as number) - flat) / allowed);
      moved = Math.max(moved, largest);
    }
    t.true(worst <= 1.001, `${worst} of what rounding explains`);
    t.true(moved > 1e-4);
  }
});

test.serial("one update and one copy of the model cross the wide area for a site", async (t) => {
  const listed = await rounds("sites");
  const updateBytes = 4 * (listed[0]?.round?.spec?.task?.parameters ?? 0);
  for (const [site, recorder] of wan) {
    const size = (buffers: readonly Buffer[]): number => buffers.reduce((sum, { length }) => sum + length, 0);
    const [up, down] = [size(recorder.up), size(recorder.down)];
    t.log(
      `${site}: ${up} bytes up, ${down} down, in ${ROUNDS} rounds of 2 devices with updates of ${updateBytes} bytes`,
    );
    t.true(up > ROUNDS * updateBytes && up < 1.3 * ROUNDS * updateBytes, `${up} bytes up`);
    // The weights of every round, the one after the last included, and the graphs.
    t.true(down < 1.5 * (ROUNDS + 1) * updateBytes, `${down} bytes down`);
  }
});

import { execFile, execFileSync } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { promisify } from "node:util";
import test from "ava";
import { SystemClock } from "#common/adapters/memory/clock.js";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { NatsLink } from "#common/adapters/nats/connection.js";
import { createTrustRoot, createUserKeys, formatCreds, issueDeviceUser } from "#common/adapters/nats/credentials.js";
import { NatsUpdateUplink } from "#common/adapters/nats/update-log.js";
import { deviceInbox } from "#common/domain/subjects.js";
import { nodeDisk } from "#agent/disk.js";
import { startSiteServer } from "#agent/transport/site-server.js";
import { freePort } from "#test/support/servers.js";

const run = promisify(execFile);
const mayMount = process.getuid?.() === 0 && process.platform === "linux";

(mayMount ? test : test.skip)(
  "a site's server outlives a full disk, and takes updates again by itself when there is room",
  async (t) => {
    const folder = await mkdtemp(join(tmpdir(), "shoal-site-"));
    await run("mount", ["-t", "tmpfs", "-o", "size=24m", "tmpfs", folder]);
    const stop = new AbortController();
    const fleet = await createTrustRoot();
    const { publicKey, seed } = createUserKeys();
    const { deviceAccountSeed } = fleet;
    const expiresAtMs = Date.now() + 3_600_000;
    const jwt = await issueDeviceUser({ deviceAccountSeed, device: "ann", publicKey, expiresAtMs });
    const [clock, log, port] = [new SystemClock(), new MemoryLog(), await freePort()];
    const site = await startSiteServer({
      program: execFileSync("sh", ["-c", "command -v nats-server"]).toString().trim(),
      host: "127.0.0.1",
      port,
      jwt,
      folder: join(folder, "site"),
      logBytes: 16 * 1024 ** 2,
      disk: nodeDisk,
      clock,
      log,
      signal: stop.signal,
    });
    const creds = formatCreds({ jwt, seed });
    const link = await NatsLink.connect({
      servers: [`nats://127.0.0.1:${port}`],
      creds,
      inboxPrefix: deviceInbox("ann"),
      name: "ann",
      log,
      clock,
      signal: stop.signal,
    });
    t.teardown(async () => {
      stop.abort();
      await link.close();
      await site.close();
      await run("umount", ["-l", folder]);
      await rm(folder, { recursive: true });
    });
    const uplink = new NatsUpdateUplink(link.nc, "ann", 2_000);
    const chunk = new Uint8Array(400_000);
    const first = await uplink.appendChunk("tiny-1", "first", chunk);
    const filler = join(folder, "filler");
    await t.throwsAsync(writeFile(filler, new Uint8Array(32 * 1024 ** 2)), { code: "ENOSPC" });
    let refused = 0;
    for (let i = 0; i < 4; i++)
      refused += await uplink.appendChunk("tiny-1", `lost-${i}`, chunk).then(
        () => 0,
        () => 1,
      );
    t.true(refused > 0, "a full disk takes no update");
    // Long enough for the server to be found without its log, and started again on a disk that is still full.
    await sleep(8_000);
    await rm(filler);
    let seq: number | undefined;
    const untilMs = Date.now() + 240_000;
    while (seq === undefined && Date.now() < untilMs) {
      seq = await uplink.appendChunk("tiny-1", "after", chunk).then(
        (ack) => ack.seq,
        () => undefined,
      );
    }
    t.true((seq ?? 0) > first.seq);
    t.is((await site.updates.readChunk(first.seq))?.bytes.length, chunk.length, "what was there before is there");
    t.log(log.lines.filter(({ level }) => level === "error").map(({ message }) => message));
  },
);

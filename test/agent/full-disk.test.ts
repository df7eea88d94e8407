import { execFile } from "node:child_process";
import { mkdtemp, readdir, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promisify } from "node:util";
import test from "ava";
import { MemoryLog } from "#common/adapters/memory/log.js";
import { runAgent } from "#agent/main.js";
import { nodeDisk } from "#agent/disk.js";
import { Outbox } from "#agent/outbox/outbox.js";
import { makeDraft, makeInner } from "./support/drafts.js";

const run = promisify(execFile);
const mayMount = process.getuid?.() === 0 && process.platform === "linux";

(mayMount ? test : test.skip)(
  "on a real disk that is full, nothing is left behind and the next try works",
  async (t) => {
    const folder = await mkdtemp(join(tmpdir(), "shoal-tmpfs-"));
    await run("mount", ["-t", "tmpfs", "-o", "size=256k", "tmpfs", folder]);
    t.teardown(async () => {
      await run("umount", [folder]);
      await rm(folder, { recursive: true });
    });
    const outbox = await Outbox.open({ disk: nodeDisk, folder: join(folder, "outbox"), log: new MemoryLog() });
    const filler = join(folder, "filler");
    await nodeDisk.write(filler, [new Uint8Array(100 * 1024)]);
    const draft = { ...makeDraft("job-1"), chunks: [new Uint8Array(200 * 1024)] };
    const error = await t.throwsAsync(outbox.put(draft, makeInner(1), "nonce"), { code: "SpoolFull" });
    t.regex(error.message, /is full; free space there/);
    t.deepEqual(await readdir(join(folder, "outbox", "spool")), []);
    await nodeDisk.remove(filler);
    await outbox.put(draft, makeInner(1), "nonce");
    t.deepEqual(await outbox.spooled(), [{ round: "job-1", commitSent: false }]);
  },
);

(mayMount ? test : test.skip)(
  "an agent that starts on a full disk ends with a code after which it is tried again",
  async (t) => {
    const folder = await mkdtemp(join(tmpdir(), "shoal-tmpfs-"));
    await run("mount", ["-t", "tmpfs", "-o", "size=256k", "tmpfs", folder]);
    t.teardown(async () => {
      await run("umount", [folder]);
      await rm(folder, { recursive: true });
    });
    await t.throwsAsync(nodeDisk.write(join(folder, "filler"), [new Uint8Array(300 * 1024)]), { code: "ENOSPC" });
    t.is(await runAgent({ stateDir: folder, dataset: {} }, AbortSignal.abort()), 1);
  },
);

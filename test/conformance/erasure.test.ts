import test from "ava";
import { NatsError } from "nats";
import type { NatsLink } from "#common/adapters/nats/connection.js";
import { erase } from "#common/adapters/nats/erasure.js";
import { ensureStreams } from "#common/adapters/nats/streams.js";
import { NatsUpdateLog, NatsUpdateUplink } from "#common/adapters/nats/update-log.js";
import { subjects } from "#common/domain/subjects.js";
import { UpdateManifest } from "#proto/shoal/v1/round.js";
import { startNats, type NatsTestServer } from "#test/support/servers.js";

let server: NatsTestServer;
let link: NatsLink;

test.before(async () => {
  server = await startNats();
  link = await server.connect();
  await ensureStreams(link);
});

test.after.always(async () => {
  await link.close();
  await server.stop();
});

type Manager = Awaited<ReturnType<NatsLink["manager"]>>;

/** The same link, whose manager has these instead. */
function linkWith(change: (manager: Manager) => { streams?: object; consumers?: object }): NatsLink {
  const manager = async (): Promise<Manager> => {
    const own = await link.manager();
    const { streams = {}, consumers = {} } = change(own);
    return Object.assign(Object.create(own) as Manager, {
      streams: Object.assign(Object.create(own.streams) as Manager["streams"], streams),
      consumers: Object.assign(Object.create(own.consumers) as Manager["consumers"], consumers),
    });
  };
  return Object.assign(Object.create(link) as NatsLink, { manager });
}

/** A link whose first consumers are of a copy that shows nothing of this filter yet, and are lost soon. */
function laggingLink(filter: string, consumers: number): { lagging: NatsLink; left: () => number } {
  let left = consumers;
  const lagging = linkWith((own) => {
    const add: Manager["consumers"]["add"] = (stream, config) => {
      if (config.filter_subject !== filter || left === 0) return own.consumers.add(stream, config);
      left -= 1;
      // What no server sends makes who follows begin again.
      setTimeout(() => link.nc.publish((config as { deliver_subject: string }).deliver_subject), 200);
      return own.consumers.add(stream, { ...config, filter_subject: "shoal.u.nobody.none-1.commit" });
    };
    // As if there were copies.
    const info: Manager["streams"]["info"] = async (stream, options) => {
      const told = await own.streams.info(stream, options);
      return { ...told, config: { ...told.config, num_replicas: 3 } };
    };
    return { consumers: { add }, streams: { info } };
  });
  return { lagging, left: () => left };
}

/** Appends an update of one chunk; sequences of chunk and commit. */
async function append(device: string, round: string, times = 1): Promise<{ chunks: number[]; commits: number[] }> {
  const uplink = new NatsUpdateUplink(link.nc, device, 30_000);
  const [chunks, commits]: [number[], number[]] = [[], []];
  for (let n = 0; n < times; n++) {
    const id = `${device}-${round}-${link.clock.monotonicMs()}-${n}`;
    chunks.push((await uplink.appendChunk(round, `${id}-chunk`, new Uint8Array(100))).seq);
    const manifest = UpdateManifest.fromPartial({ device, round });
    commits.push((await uplink.appendCommit(round, `${id}-commit`, manifest)).seq);
  }
  return { chunks, commits };
}

/** Chunks and commits that the log has of an update. */
async function leftOf(device: string, round: string): Promise<[chunks: number, commits: number]> {
  const { parts } = await new NatsUpdateLog(link).parts();
  const { chunks = 0, commits = 0 } = parts.find((each) => each.device === device && each.round === round) ?? {};
  return [chunks, commits];
}

test("commits that a lagging copy does not show go before their chunks do", async (t) => {
  const { commits } = await append("dev-lag", "lag-1", 3);
  const { lagging, left } = laggingLink("shoal.u.dev-lag.*.commit", 2);
  const log = new NatsUpdateLog(lagging);
  t.is(await log.purgeDevice("dev-lag", commits[2] ?? 0, new Set()), 6);
  t.is(left(), 0);
  t.deepEqual(await leftOf("dev-lag", "lag-1"), [0, 0]);
});

test("a round goes whole though a lagging copy shows nothing of it", async (t) => {
  await append("dev-all", "all-1", 3);
  const { lagging, left } = laggingLink("shoal.u.*.all-1.commit", 2);
  await new NatsUpdateLog(lagging).purgeRound("all-1");
  t.is(left(), 0);
  t.deepEqual(await leftOf("dev-all", "all-1"), [0, 0]);
});

test("what a lagging copy does not show stays if it is kept, or behind the last sequence", async (t) => {
  const { commits } = await append("dev-keep", "keep-1", 4);
  const { lagging, left } = laggingLink("shoal.u.dev-keep.keep-1.commit", 2);
  const log = new NatsUpdateLog(lagging);
  const [first = 0, second = 0, third = 0, fourth = 0] = commits;
  const selection = { round: "keep-1", device: "dev-keep", upToSeq: third, keep: new Set([second]) };
  t.is(await log.purge({ ...selection, part: "commit" }), 2);
  t.is(left(), 0);
  const there = await Promise.all([first, second, third, fourth].map((seq) => log.readCommit(seq)));
  t.deepEqual(
    there.map((commit) => commit !== undefined),
    [false, true, false, true],
  );
});

test("an update that comes while its round is erased stays whole", async (t) => {
  await append("dev-late", "late-1");
  let isLate = true;
  const held = linkWith((own) => {
    const purge: Manager["streams"]["purge"] = async (stream, options) => {
      const purged = await own.streams.purge(stream, options);
      if (isLate) await append("dev-late", "late-1");
      isLate = false;
      return purged;
    };
    return { streams: { purge } };
  });
  await new NatsUpdateLog(held).purgeRound("late-1");
  t.false(isLate);
  t.deepEqual(await leftOf("dev-late", "late-1"), [1, 1]);
});

/** What the server says of a message that it could not delete, for whatever reason. */
function deleteFailed(description: string): NatsError {
  const error = new NatsError(description, "10057");
  error.api_error = { code: 500, err_code: 10057, description };
  return error;
}

test("what could not be deleted is gone only if the leader has no such message", async (t) => {
  const { commits } = await append("dev-stuck", "stuck-1");
  const filter = subjects.updateChunk("dev-stuck", "stuck-1");
  const doomed = { stream: "UPDATES", filter, isDoomed: () => true };
  const stuck = linkWith(() => ({
    streams: { deleteMessage: () => Promise.reject(deleteFailed("no space left on device")) },
  }));
  await t.throwsAsync(erase(stuck, doomed), { message: /no space left on device/ });
  t.deepEqual(await leftOf("dev-stuck", "stuck-1"), [1, 1]);
  const late = linkWith((own) => ({
    streams: {
      deleteMessage: async (stream: string, seq: number) => {
        await own.streams.deleteMessage(stream, seq, false);
        throw deleteFailed("stream store EOF");
      },
    },
  }));
  t.is(await erase(late, { ...doomed, upToSeq: commits[0] ?? 0 }), 0);
  t.deepEqual(await leftOf("dev-stuck", "stuck-1"), [0, 1]);
});

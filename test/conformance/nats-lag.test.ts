import test from "ava";
import { headers, NatsError, type ConsumerConfig, type JetStreamManager, type StoredMsg } from "nats";
import type { NatsLink } from "#common/adapters/nats/connection.js";
import { NatsResourceStore } from "#common/adapters/nats/kv-store.js";
import { ensureStreams } from "#common/adapters/nats/streams.js";
import { NatsUpdateLog, NatsUpdateUplink } from "#common/adapters/nats/update-log.js";
import { newMeta } from "#common/domain/resources.js";
import { Device, JoinToken, Lease } from "#proto/shoal/v1/device.js";
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

/** What the leader says of the last message on some subjects, and how a consumer is made on a copy. */
interface Lag {
  readonly leaderSays: () => Promise<{ seq: number } | undefined>;
  readonly consumes?: (config: Partial<ConsumerConfig>) => Partial<ConsumerConfig> | Promise<Partial<ConsumerConfig>>;
}

/** A link to a stream that has copies, of which consumers read one that lags: it has later what the leader has named. */
function laggingLink({ leaderSays, consumes = (config) => config }: Lag): NatsLink {
  const wrap = <T extends object>(target: T, own: Partial<T>): T =>
    Object.defineProperties(Object.create(target) as T, Object.getOwnPropertyDescriptors(own) as PropertyDescriptorMap);
  const manager = async (): Promise<JetStreamManager> => {
    const real = await link.manager();
    const { streams, consumers } = real;
    return wrap(real, {
      streams: wrap(streams, {
        info: async (name, options) => {
          const info = await streams.info(name, options);
          return { ...info, config: { ...info.config, num_replicas: 3 } };
        },
        getMessage: async (name, query) => {
          const said = await leaderSays();
          if (said !== undefined)
            return { ...said, subject: "", data: new Uint8Array(), header: headers() } as StoredMsg;
          return streams.getMessage(name, query);
        },
      }),
      consumers: wrap(consumers, { add: async (stream, config) => consumers.add(stream, await consumes(config)) }),
    });
  };
  return wrap(link, { manager });
}

const commitOf = (uplink: NatsUpdateUplink, round: string, id: string): Promise<{ seq: number }> =>
  uplink.appendCommit(round, `${round}/${id}`, UpdateManifest.fromPartial({ device: "dev-l", round }));

test("what a lagging copy does not have yet is waited for, and never called absent", async (t) => {
  const uplink = new NatsUpdateUplink(link.nc, "dev-l");
  const first = await commitOf(uplink, "lag-1", "a");
  let second: { seq: number } | undefined;
  const late = setTimeout(() => void commitOf(uplink, "lag-1", "b").then((commit) => (second = commit)), 500);
  const leaderSays = (): Promise<{ seq: number } | undefined> =>
    Promise.resolve(second ?? { seq: Number.MAX_SAFE_INTEGER });
  const log = new NatsUpdateLog(laggingLink({ leaderSays }));
  const seqs = (await log.commits("lag-1")).map(({ seq }) => seq);
  clearTimeout(late);
  t.deepEqual(seqs, [first.seq, second?.seq]);
});

test("what the leader named and was erased since is not waited for", async (t) => {
  const first = await commitOf(new NatsUpdateUplink(link.nc, "dev-l"), "lag-2", "a");
  let asked = 0;
  const leaderSays = (): Promise<{ seq: number }> =>
    Promise.resolve({ seq: first.seq + (++asked < 4 ? 1_000_000 : 0) });
  const log = new NatsUpdateLog(laggingLink({ leaderSays }));
  t.deepEqual(
    (await log.commits("lag-2")).map(({ seq }) => seq),
    [first.seq],
  );
});

/** A link to a server that says of each message that nothing more is pending, as one does that others write to and erase from. */
function miscountingLink(): NatsLink {
  const nc = Object.create(link.nc) as NatsLink["nc"];
  nc.subscribe = (subject, options) =>
    link.nc.subscribe(subject, {
      ...options,
      callback: (error, message) => {
        const tokens = message.reply?.split(".") ?? [];
        if (tokens[1] === "ACK") tokens[tokens.length > 9 ? 10 : 8] = "0";
        options?.callback?.(error, Object.create(message, { reply: { value: tokens.join(".") } }) as typeof message);
      },
    });
  return Object.create(link, { nc: { value: nc } }) as NatsLink;
}

test("that nothing more is pending, which servers say too early, is not the end of the past", async (t) => {
  const uplink = new NatsUpdateUplink(link.nc, "dev-l");
  const commits = [];
  for (const id of ["a", "b", "c"]) commits.push(await commitOf(uplink, "miscount-1", id));
  t.deepEqual(
    (await new NatsUpdateLog(miscountingLink()).commits("miscount-1")).map(({ seq }) => seq),
    commits.map(({ seq }) => seq),
  );
});

test("what a copy that lags far repeats is not delivered again", async (t) => {
  const uplink = new NatsUpdateUplink(link.nc, "dev-l");
  const [first, second] = [await commitOf(uplink, "lag-3", "a"), await commitOf(uplink, "lag-3", "b")];
  const log = new NatsUpdateLog(
    laggingLink({ leaderSays: () => Promise.resolve(second), consumes: (config) => ({ ...config, opt_start_seq: 1 }) }),
  );
  t.deepEqual(
    (await log.commits("lag-3", first.seq)).map(({ seq }) => seq),
    [second.seq],
  );
});

test("the leader says that there is no more, and no consumer is made to hear it again", async (t) => {
  const last = await commitOf(new NatsUpdateUplink(link.nc, "dev-l"), "lag-4", "a");
  const consumes = (): never => {
    throw new Error("a consumer was made");
  };
  const log = new NatsUpdateLog(laggingLink({ leaderSays: () => Promise.resolve(undefined), consumes }));
  t.deepEqual(await log.commits("lag-4", last.seq), []);
});

test("what is written again while a list is begun is in it, behind what was the last", async (t) => {
  const store = await NatsResourceStore.open(link);
  const written = await Promise.all(
    ["moved-1", "moved-2"].map((name) => store.create("Device", Device.fromPartial({ metadata: newMeta(name) }))),
  );
  const consumes = async (config: Partial<ConsumerConfig>): Promise<Partial<ConsumerConfig>> => {
    for (const one of written) t.true(one.ok && (await store.update("Device", one.resource)).ok);
    return config;
  };
  const rewritten = await NatsResourceStore.open(
    laggingLink({ leaderSays: () => Promise.resolve(undefined), consumes }),
  );
  const { items } = await rewritten.list("Device");
  t.deepEqual(
    items.map(({ metadata }) => metadata?.name),
    ["moved-1", "moved-2"],
  );
});

test("the version of a list is that of what it holds, wherever the stream's head is", async (t) => {
  const store = await NatsResourceStore.open(link);
  const held = await store.create("JoinToken", JoinToken.fromPartial({ metadata: newMeta("head-1") }));
  await store.create("Lease", Lease.fromPartial({ metadata: newMeta("head-2") }));
  const { items, version } = await store.list("JoinToken");
  t.deepEqual(
    items.map(({ metadata }) => metadata?.name),
    ["head-1"],
  );
  t.is(version, (held.ok && held.resource.metadata?.resourceVersion) || "refused");
});

test("that there is no such stream, as a server says that starts, is no sign that a resource is absent", async (t) => {
  const noStream = new NatsError("stream not found", "404");
  noStream.api_error = { code: 404, err_code: 10059, description: "stream not found" };
  const store = await NatsResourceStore.open(laggingLink({ leaderSays: () => Promise.reject(noStream) }));
  await t.throwsAsync(store.get("Lease", "any"), { message: /stream not found/ });
  await t.throwsAsync(store.delete("Lease", "any"), { message: /stream not found/ });
});

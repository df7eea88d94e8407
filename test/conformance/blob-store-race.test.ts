import { createHash, randomBytes } from "node:crypto";
import test from "ava";
import { NatsBlobStore } from "#common/adapters/nats/blob-store.js";
import type { NatsLink } from "#common/adapters/nats/connection.js";
import { ensureStreams } from "#common/adapters/nats/streams.js";
import { MAX_PIECE_BYTES } from "#common/domain/subjects.js";
import { startNats, type NatsTestServer } from "#test/support/servers.js";

let server: NatsTestServer;
let link: NatsLink;
let blobs: NatsBlobStore;

test.before(async () => {
  server = await startNats();
  link = await server.connect();
  await ensureStreams(link);
  blobs = new NatsBlobStore(link);
});

test.after.always(async () => {
  await link.close();
  await server.stop();
});

type Publish = ReturnType<NatsLink["jetstream"]>["publish"];
type Request = NatsLink["nc"]["request"];

/** The same store, which writes through this. */
function writingThrough(wrap: (publish: Publish) => Publish): NatsBlobStore {
  const jetstream = () => {
    const js = link.jetstream();
    return Object.assign(Object.create(js) as typeof js, { publish: wrap(js.publish.bind(js)) });
  };
  return new NatsBlobStore(Object.assign(Object.create(link) as NatsLink, { jetstream }));
}

/** The same store, which asks through this. */
function askingThrough(request: Request): NatsBlobStore {
  const nc = Object.assign(Object.create(link.nc) as typeof link.nc, { request });
  const manager = (): ReturnType<NatsLink["manager"]> => nc.jetstreamManager({ checkAPI: false });
  return new NatsBlobStore(Object.assign(Object.create(link) as NatsLink, { nc, manager }));
}

const hexOf = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");
const headOf = async (): Promise<number> => (await blobs.contents()).version;

async function subjectsOf(hex: string): Promise<string[]> {
  const filter = `shoal.blob.${hex}.*`;
  const { state } = await (await link.manager()).streams.info("BLOBS", { subjects_filter: filter });
  return Object.keys(state.subjects ?? {})
    .map((subject) => subject.slice(filter.length - 1))
    .sort();
}

async function versionOf(digest: string): Promise<number> {
  return (await blobs.contents()).blobs.find((entry) => entry.digest === digest)?.version ?? 0;
}

/** Lets a reader of a message with this subject's end go on only after `meanwhile`, the first time. */
function afterReading(end: string, meanwhile: () => Promise<unknown>): NatsBlobStore {
  let isFirst = true;
  return askingThrough(async (subject, payload, options) => {
    const answer = await link.nc.request(subject, payload, options);
    const asked = `${subject} ${typeof payload === "string" ? payload : new TextDecoder().decode(payload)}`;
    if (!isFirst || !/\.STREAM\.MSG\.GET\./.test(subject) || !asked.includes(`${end}"`)) return answer;
    isFirst = false;
    await meanwhile();
    return answer;
  });
}

test("pieces that are collected before a put has its reference are written again", async (t) => {
  const bytes = randomBytes(2 * MAX_PIECE_BYTES + 3);
  const digest = `sha256:${hexOf(bytes)}`;
  let collections = 0;
  const slow = writingThrough((publish) => async (subject, ...rest) => {
    if (subject.endsWith(`${digest.slice(7)}.ref`) && collections++ === 0)
      await blobs.collectPartial(digest, await headOf());
    return publish(subject, ...rest);
  });
  await slow.put(bytes);
  t.is(collections, 2);
  t.deepEqual(Buffer.from((await blobs.get(digest)) ?? "absent"), bytes);
});

test("a put looks whether all its pieces are there, however soon it is done", async (t) => {
  const bytes = randomBytes(2 * MAX_PIECE_BYTES + 3);
  const hex = hexOf(bytes);
  let losses = 0;
  const losing = writingThrough((publish) => async (subject, ...rest) => {
    const written = await publish(subject, ...rest);
    if (subject.endsWith(`${hex}.0`) && losses++ === 0)
      await (await link.manager()).streams.purge("BLOBS", { filter: subject });
    return written;
  });
  const { digest } = await losing.put(bytes);
  t.is(losses, 2);
  t.deepEqual(Buffer.from((await blobs.get(digest)) ?? "absent"), bytes);
});

test("a put that ends while its pieces are about to be collected keeps them", async (t) => {
  const bytes = randomBytes(2 * MAX_PIECE_BYTES + 3);
  const digest = `sha256:${hexOf(bytes)}`;
  const [written, mayEnd] = [new AbortController(), new AbortController()];
  const slow = writingThrough((publish) => async (subject, ...rest) => {
    if (subject.endsWith(".ref")) {
      written.abort();
      await link.clock.sleep(20_000, mayEnd.signal);
    }
    return publish(subject, ...rest);
  });
  const put = slow.put(bytes);
  await link.clock.sleep(20_000, written.signal);
  const collector = afterReading(`${digest.slice(7)}.ref`, async () => {
    mayEnd.abort();
    await put;
  });
  await collector.collectPartial(digest, await headOf());
  t.true(mayEnd.signal.aborted);
  t.deepEqual(Buffer.from((await blobs.get(digest)) ?? "absent"), bytes);
});

test("a put that goes on is not collected; one that was cut off is, and its mark after it", async (t) => {
  const js = link.jetstream();
  const hex = hexOf(randomBytes(8));
  const digest = `sha256:${hex}`;
  for (const piece of [0, 1]) await js.publish(`shoal.blob.${hex}.${piece}`, randomBytes(10));
  const version = await headOf();
  await js.publish(`shoal.blob.${hex}.2`, randomBytes(10));
  await blobs.collectPartial(digest, version);
  t.deepEqual(await subjectsOf(hex), ["0", "1", "2"]);
  await blobs.collectPartial(digest, await headOf());
  t.deepEqual(await subjectsOf(hex), ["ref"]);
  t.is(await blobs.stat(digest), undefined);
  t.true((await blobs.contents()).partial.includes(digest));
  await blobs.collectPartial(digest, await headOf());
  t.deepEqual(await subjectsOf(hex), []);
});

test("staged content is not dropped on the word of a copy that lags", async (t) => {
  const bytes = randomBytes(MAX_PIECE_BYTES + 3);
  const { digest } = await blobs.put(bytes);
  const direct = `$JS.API.DIRECT.GET.BLOBS.shoal.blob.${digest.slice(7)}.ref`;
  const early = await link.nc.request(direct, "");
  t.true(await blobs.collect(digest, await versionOf(digest)));
  await blobs.stage("lagging", 0, bytes);
  await blobs.seal("lagging", [bytes.length], digest);
  const reader = askingThrough(async (subject, ...rest) =>
    subject === direct ? early : link.nc.request(subject, ...rest),
  );
  await reader.unstage("lagging");
  t.deepEqual(Buffer.from((await blobs.get(digest)) ?? "absent"), bytes);
});

test("what is staged and sealed while content is dropped stays", async (t) => {
  const bytes = randomBytes(MAX_PIECE_BYTES + 3);
  const digest = `sha256:${hexOf(bytes)}`;
  await blobs.stage("again", 0, bytes);
  const dropper = afterReading("again.owner", async () => {
    await blobs.stage("again", 0, bytes);
    await blobs.seal("again", [bytes.length], digest);
  });
  await dropper.unstage("again");
  t.deepEqual(Buffer.from((await blobs.get(digest)) ?? "absent"), bytes);
});

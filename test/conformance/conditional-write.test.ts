import test from "ava";
import { headers, NatsError, type JetStreamClient, type JetStreamPublishOptions } from "nats";
import { SystemClock } from "#common/adapters/memory/clock.js";
import { writeAfter } from "#common/adapters/nats/conditional-write.js";
import type { NatsLink } from "#common/adapters/nats/connection.js";

type Expectation = JetStreamPublishOptions["expect"];

/** A link to a server of a version, of a cluster or alone, whose stream ends at 20 and its subject at 7, and answers so. */
function linkTo(
  version: string | undefined,
  cluster: string | undefined,
  publish: (expect: Expectation) => number,
): NatsLink {
  const js: Pick<JetStreamClient, "publish"> = {
    publish: (_subject, _data, options) =>
      new Promise((resolve) =>
        resolve({ stream: "S", domain: "", seq: publish(options?.expect ?? {}), duplicate: false }),
      ),
  };
  const streams = {
    info: () => Promise.resolve({ state: { last_seq: 20 } }),
    getMessage: () => Promise.resolve({ seq: 7, header: headers() }),
  };
  return {
    nc: { info: { version, cluster } },
    clock: new SystemClock(),
    manager: () => Promise.resolve({ streams }),
    jetstream: () => js,
    call: (request: () => unknown) => request(),
  } as unknown as NatsLink;
}

const [CLUSTER, ALONE] = ["shoal", undefined];
const WRITE = { stream: "S", subject: "a.b", data: "x", lastSeq: 7 };

function refuse(code: number): never {
  const error = new NatsError("wrong last sequence", "400");
  error.api_error = { code: 400, err_code: code, description: "wrong last sequence" };
  throw error;
}

const SUBJECT_ONLY = { lastSubjectSequence: 7 };
const BOTH = { lastSubjectSequence: 7, lastSequence: 20 };
for (const [version, cluster, expected] of [
  ["2.9.10", CLUSTER, BOTH],
  ["2.9.20-beta", CLUSTER, BOTH],
  ["1.4.0", CLUSTER, BOTH],
  [undefined, CLUSTER, BOTH],
  ["2.9.10", ALONE, SUBJECT_ONLY],
  ["2.9.21", CLUSTER, SUBJECT_ONLY],
  ["2.10.0", CLUSTER, SUBJECT_ONLY],
  ["2.15.2", CLUSTER, SUBJECT_ONLY],
  ["3.0.0", CLUSTER, SUBJECT_ONLY],
] as const) {
  test(`what a write to server ${version} of cluster ${cluster} expects`, async (t) => {
    const seen: Expectation[] = [];
    const link = linkTo(version, cluster, (expect) => {
      seen.push(expect);
      return 21;
    });
    t.is(await writeAfter(link, WRITE), 21);
    t.deepEqual(seen, [expected]);
  });
}

test("a write behind no message expects no more, of any server", async (t) => {
  const link = linkTo("2.9.10", CLUSTER, (expect) => {
    t.deepEqual(expect, { lastSubjectSequence: 0 });
    return 21;
  });
  t.is(await writeAfter(link, { ...WRITE, lastSeq: 0 }), 21);
});

test("whoever was not the first is told so", async (t) => {
  t.is(
    await writeAfter(
      linkTo("2.15.2", CLUSTER, () => refuse(10071)),
      WRITE,
    ),
    undefined,
  );
  t.is(
    await writeAfter(
      linkTo("2.9.10", CLUSTER, () => 21),
      { ...WRITE, lastSeq: 6 },
    ),
    undefined,
  );
  await t.throwsAsync(
    writeAfter(
      linkTo("2.15.2", CLUSTER, () => refuse(10077)),
      WRITE,
    ),
    { message: "wrong last sequence" },
  );
});

test("while another write is under way, which may fail yet, it is tried again", async (t) => {
  for (const end of [() => 25, () => refuse(10071)]) {
    let tries = 0;
    const link = linkTo("2.15.2", CLUSTER, () => (++tries < 4 ? refuse(10164) : end()));
    const seq = await writeAfter(link, WRITE);
    t.true(seq === 25 || seq === undefined);
    t.is(tries, 4);
  }
});

test("a write that others' subjects went before is tried again", async (t) => {
  let tries = 0;
  const link = linkTo("2.9.10", CLUSTER, () => (++tries < 4 ? refuse(10071) : 24));
  t.is(await writeAfter(link, WRITE), 24);
  t.is(tries, 4);
});

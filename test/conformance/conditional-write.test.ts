import test from "ava";
import { NatsError, type JetStreamClient, type JetStreamPublishOptions } from "nats";
import { writeAfter } from "#common/adapters/nats/conditional-write.js";
import type { NatsLink } from "#common/adapters/nats/connection.js";

type Publish = (options: Partial<JetStreamPublishOptions>) => { seq: number; duplicate: boolean };

/** A link to a server of a version, whose stream answers so. */
function linkTo(version: string | undefined, publish: Publish): NatsLink {
  const js: Pick<JetStreamClient, "publish"> = {
    publish: (_subject, _data, options = {}) =>
      new Promise((resolve) => resolve({ stream: "S", domain: "", ...publish(options) })),
  };
  return {
    nc: { info: version === undefined ? undefined : { version } },
    jetstream: () => js,
    call: (request: () => unknown) => request(),
  } as unknown as NatsLink;
}

const WRITE = { subject: "a.b", data: "x", lastSeq: 7 };

function refusal(code: number): NatsError {
  const error = new NatsError("wrong last sequence", "400");
  error.api_error = { code: 400, err_code: code, description: "wrong last sequence" };
  return error;
}

for (const [version, lastSeq, id] of [
  ["2.9.10", 7, "a.b@7"],
  ["2.9.25", 7, "a.b@7"],
  ["1.4.0", 7, "a.b@7"],
  ["2.9.10", 0, undefined],
  ["2.10.0", 7, undefined],
  ["2.15.2", 7, undefined],
  ["3.0.0", 7, undefined],
  [undefined, 7, "a.b@7"],
] as const) {
  test(`a write behind ${lastSeq} to server ${version} has ${id === undefined ? "no id" : "the id"}`, async (t) => {
    const seen: (string | undefined)[] = [];
    const link = linkTo(version, ({ msgID, expect }) => {
      seen.push(msgID);
      t.deepEqual(expect, { lastSubjectSequence: lastSeq });
      return { seq: 9, duplicate: false };
    });
    t.is(await writeAfter(link, { ...WRITE, lastSeq }), 9);
    t.deepEqual(seen, [id]);
  });
}

test("whoever was not the first is told so, in every server's words", async (t) => {
  t.is(
    await writeAfter(
      linkTo("2.9.10", () => ({ seq: 8, duplicate: true })),
      WRITE,
    ),
    undefined,
  );
  for (const code of [10071, 10164]) {
    const link = linkTo("2.15.2", () => {
      throw refusal(code);
    });
    t.is(await writeAfter(link, WRITE), undefined, String(code));
  }
  const other = linkTo("2.15.2", () => {
    throw refusal(10077);
  });
  await t.throwsAsync(writeAfter(other, WRITE), { message: "wrong last sequence" });
});

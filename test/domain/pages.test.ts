import test from "ava";
import fc from "fast-check";
import { cutPage, pageToken, parsePage } from "#common/domain/pages.js";

const LIMITS = { max: 1000, fallback: 100 };

test("page_size is bounded, and 0 means the fallback", (t) => {
  for (const [asked, size] of [
    [0, 100],
    [7, 7],
    [1000, 1000],
  ] as const) {
    t.like(parsePage(asked, "", "jobs", LIMITS), { ok: true, page: { size, after: "" } });
  }
  for (const asked of [-1, 1001, 1.5, Number.NaN]) {
    const parsed = parsePage(asked, "", "jobs", LIMITS);
    t.false(parsed.ok);
    if (!parsed.ok) t.is(parsed.violations[0]?.field, "page_size");
  }
});

test("a token of another list, or nonsense, is refused", (t) => {
  for (const token of ["nonsense", pageToken("devices", "b"), `${pageToken("jobs", "b")}x`]) {
    const parsed = parsePage(0, token, "jobs", LIMITS);
    t.false(parsed.ok, token);
    if (!parsed.ok) t.is(parsed.violations[0]?.field, "page_token");
  }
});

test("pages follow one another without gap or repeat, whatever their size", (t) => {
  fc.assert(
    fc.property(fc.uniqueArray(fc.string({ minLength: 1 })), fc.integer({ min: 1, max: 7 }), (drawn, size) => {
      const names = [...drawn].sort();
      const seen: string[] = [];
      let token = "";
      do {
        const parsed = parsePage(size, token, "jobs", LIMITS);
        if (!parsed.ok) throw new Error("our own token is refused");
        const cut = cutPage(names, (name) => name, parsed.page, "jobs");
        seen.push(...cut.items);
        token = cut.nextPageToken;
      } while (token !== "");
      t.deepEqual(seen, names);
    }),
    { numRuns: 100 },
  );
});

import { useState } from "preact/hooks";
import { call, get, session, useLoad } from "../api";
import { bytes, number } from "../format";
import { useStore } from "../store";
import { T } from "../texts";
import { Badge, Bar, Button, Field, Head, Problem, say, Wait } from "../ui";

export type QuotaName = keyof typeof T.account.quotas;
export type Quotas = Record<QuotaName, { used: number; limit: number }>;

/** The bytes of which those that are sizes count. */
export const SIZES: Partial<Record<QuotaName, number>> = {
  bytes: 1,
  memory_mb: 1024 ** 2,
  storage_gb: 1024 ** 3,
};

export function amount(name: QuotaName, value: number): string {
  const one = SIZES[name];
  return one ? bytes(value * one) : number(value);
}

export function Account() {
  const user = useStore(session);
  const quota = useLoad("quota", (signal) => get<Quotas>("/api/quota", {}, signal), 30);
  return (
    <>
      <Head title={T.account.title} />
      <section class="part">
        <header>
          <div>
            <h2>{user?.display_name || user?.username}</h2>
            <p class="about">
              {user?.username} · {T.account.id} <code>{user?.user_id}</code>{" "}
              {user?.is_admin && <Badge kind="info">{T.account.administrator}</Badge>}
            </p>
          </div>
        </header>
      </section>
      <section class="part">
        <header>
          <h2>{T.account.quota}</h2>
        </header>
        <Wait on={quota}>
          {(data) => (
            <div class="meters">
              {(Object.keys(T.account.quotas) as QuotaName[]).map((name) => {
                const { used, limit } = data[name];
                const text = T.account.of(amount(name, used), amount(name, limit));
                return (
                  <div key={name}>
                    <span>{T.account.quotas[name]}</span>
                    <span class="number">{text}</span>
                    <Bar used={used} total={limit} label={`${T.account.quotas[name]}: ${text}`} />
                  </div>
                );
              })}
            </div>
          )}
        </Wait>
      </section>
      <Password />
    </>
  );
}

function Password() {
  const [old, setOld] = useState("");
  const [fresh, setFresh] = useState("");
  const [error, setError] = useState<unknown>(null);
  const submit = async (event: Event): Promise<void> => {
    event.preventDefault();
    setError(null);
    try {
      await call("PUT", "/api/password", { body: { old, new: fresh } });
      setOld("");
      setFresh("");
      say(T.account.changed);
    } catch (failure) {
      setError(failure);
    }
  };
  return (
    <section class="part">
      <header>
        <h2>{T.account.password}</h2>
      </header>
      <form class="narrow" onSubmit={submit}>
        <Field label={T.account.old}>
          <input
            type="password"
            autocomplete="current-password"
            required
            value={old}
            onInput={(event) => setOld(event.currentTarget.value)}
          />
        </Field>
        <Field label={T.account.new} hint={T.account.newHint}>
          <input
            type="password"
            autocomplete="new-password"
            required
            minLength={8}
            value={fresh}
            onInput={(event) => setFresh(event.currentTarget.value)}
          />
        </Field>
        {error !== null && <Problem error={error} />}
        <Button type="submit" disabled={!old || !fresh}>
          {T.account.change}
        </Button>
      </form>
    </section>
  );
}

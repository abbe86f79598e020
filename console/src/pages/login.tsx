import { useEffect, useState } from "preact/hooks";
import { begin, call, Failure, farewell, type Session } from "../api";
import { useStore } from "../store";
import { T } from "../texts";
import { Button, Field, Problem } from "../ui";

/** The answer to wrong passwords takes up to 8 s. */
const LOGIN_MS = 15_000;

export function Login() {
  const [username, setUsername] = useState("");
  const [password, setPassword] = useState("");
  const [error, setError] = useState<unknown>(null);
  const [busy, setBusy] = useState(false);
  const why = useStore(farewell);
  useEffect(() => {
    document.title = `${T.login.title} · ${T.product}`;
  }, []);
  const submit = async (event: Event): Promise<void> => {
    event.preventDefault();
    setBusy(true);
    setError(null);
    try {
      const options = { body: { username, password }, ms: LOGIN_MS };
      begin(await call<Session>("POST", "/api/login", options));
    } catch (failure) {
      const isUnanswered = failure instanceof Failure && !failure.status;
      setError(isUnanswered ? new Error(T.login.late) : failure);
      setBusy(false);
    }
  };
  return (
    <main class="login">
      <form onSubmit={submit}>
        <p class="product">{T.product}</p>
        <h1>{T.login.title}</h1>
        {why && <p role="status">{why}</p>}
        <Field label={T.login.username}>
          <input
            name="username"
            autocomplete="username"
            autocapitalize="none"
            spellcheck={false}
            required
            autofocus
            value={username}
            onInput={(event) => setUsername(event.currentTarget.value)}
          />
        </Field>
        <Field label={T.login.password}>
          <input
            name="password"
            type="password"
            autocomplete="current-password"
            required
            value={password}
            onInput={(event) => setPassword(event.currentTarget.value)}
          />
        </Field>
        {error !== null && <Problem error={error} />}
        <Button type="submit" look="main" disabled={busy}>
          {T.login.submit}
        </Button>
        <p class="hint">{T.login.first}</p>
        <p class="hint">
          <a href="/docs">{T.nav.api}</a>
        </p>
      </form>
    </main>
  );
}

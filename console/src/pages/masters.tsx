// The master, those that could replace it, and who holds.
import { call, get, request, useLoad } from "../api";
import { duration, fullTime, number } from "../format";
import { T } from "../texts";
import { ask, Badge, Button, confirm, Dialog, Empty, Head, Rows, say, Wait } from "../ui";

interface Shadow {
  address: string;
  state: string;
  behind_operations: number | null;
  behind_seconds: number | null;
}

interface List {
  master: string;
  term: number;
  sequence: number;
  replicas_before_ack: number;
  shadows: Shadow[];
  election: {
    engine: string;
    holder: string;
    since: number;
    away_seconds: number;
    reason: string;
  } | null;
}

const KINDS: Record<string, string> = { following: "good", "not counted": "warn", away: "bad" };

export function Masters() {
  const found = useLoad("masters", (signal) => get<List>("/admin/cluster/masters", {}, signal), 3);
  const failOver = (address: string): void =>
    ask((close) => <Failover {...{ address, close }} done={found.reload} />);
  const forget = (address: string): void =>
    confirm({
      title: T.masters.forgetTitle(address),
      text: T.masters.forgetText,
      action: T.masters.forget.replace("…", ""),
      run: async () => {
        await request("DELETE", `/admin/cluster/masters/${encodeURIComponent(address)}`);
        found.reload();
      },
    });
  return (
    <>
      <Head title={T.masters.title} about={T.masters.about}>
        {found.data?.election && (
          <Button onClick={() => failOver("")}>{T.masters.failover}</Button>
        )}
      </Head>
      <Wait on={found}>
        {({ master, term, sequence, replicas_before_ack, shadows, election }) => (
          <>
            <dl class="facts">
              <dt>{T.masters.master}</dt>
              <dd>
                {master ? <code>{master}</code> : T.cluster.unknown}
              </dd>
              <dt>{T.masters.term}</dt>
              <dd>{term}</dd>
              <dt>{T.masters.sequence}</dt>
              <dd>{number(sequence)}</dd>
              <dt>{T.masters.before}</dt>
              <dd>{replicas_before_ack}</dd>
            </dl>
            <section class="part">
              <header>
                <h2>{T.masters.shadows}</h2>
              </header>
              {shadows.length ? (
                <Rows
                  label={T.masters.shadows}
                  rows={shadows}
                  id={(each) => each.address}
                  columns={[
                    { head: T.masters.master, names: true, cell: (each) => each.address },
                    {
                      head: T.masters.state,
                      cell: ({ state }) => (
                        <Badge kind={KINDS[state] ?? ""}>{T.masters.states[state] ?? state}</Badge>
                      ),
                    },
                    {
                      head: T.masters.behind,
                      cell: ({ behind_operations, behind_seconds }) =>
                        behind_operations === null
                          ? T.cluster.unknown
                          : T.masters.behindBy(number(behind_operations), duration(behind_seconds ?? 0)),
                    },
                    {
                      cell: (each) => (
                        <>
                          {election && (
                            <Button onClick={() => failOver(each.address)}>{T.masters.failoverTo}</Button>
                          )}{" "}
                          <Button look="danger" onClick={() => forget(each.address)}>
                            {T.masters.forget}
                          </Button>
                        </>
                      ),
                    },
                  ]}
                />
              ) : (
                <Empty icon="flag" title={T.masters.none} hint={T.masters.noneHint} />
              )}
            </section>
            <section class="part">
              <header>
                <h2>{T.masters.election}</h2>
              </header>
              {election ? (
                <dl class="facts">
                  <dt>{T.masters.engine}</dt>
                  <dd>
                    <code>{election.engine}</code>
                    {election.away_seconds > 0 && (
                      <>
                        {" "}
                        <Badge kind="bad">{T.masters.away(duration(election.away_seconds))}</Badge>{" "}
                        {election.reason}
                      </>
                    )}
                  </dd>
                  <dt>{T.masters.holder}</dt>
                  <dd>{election.holder || T.masters.nobody}</dd>
                  <dt>{T.masters.since}</dt>
                  <dd>{election.since ? fullTime(election.since) : T.common.none}</dd>
                </dl>
              ) : (
                <p class="about">{T.masters.noElection}</p>
              )}
            </section>
          </>
        )}
      </Wait>
    </>
  );
}

function Failover({
  address,
  close,
  done,
}: {
  address: string;
  close: () => void;
  done: () => void;
}) {
  const submit = async (): Promise<void> => {
    const body = { address };
    const { master } = await call<{ master: string }>("POST", "/admin/cluster/failover", { body });
    say(T.masters.failedOver(master));
    done();
  };
  return (
    <Dialog
      title={T.masters.failoverTitle}
      action={T.masters.failover.replace("…", "")}
      submit={submit}
      close={close}
    >
      <p>{T.masters.failoverText}</p>
    </Dialog>
  );
}

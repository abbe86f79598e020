// Values outside of components, which those that show them follow.
import { useEffect, useState } from "preact/hooks";

export class Store<T> {
  private readonly listeners = new Set<() => void>();
  constructor(public value: T) {}
  set(value: T): void {
    this.value = value;
    for (const each of this.listeners) each();
  }
  listen(listener: () => void): () => void {
    this.listeners.add(listener);
    return () => this.listeners.delete(listener);
  }
}

export function useStore<T>(store: Store<T>): T {
  const [, again] = useState({});
  const { value } = store;
  useEffect(() => {
    // It may have changed since it was drawn.
    if (store.value !== value) again({});
    return store.listen(() => again({}));
  }, [store]);
  return value;
}

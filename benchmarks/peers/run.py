"""Runs a comparison: every peer in turn, round by round."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from benchmarks.peers.agreement import NUM_TEXTS, Answers, agreement, why_no_peer
from benchmarks.peers.catalogue import OURS, Peer, why_missing
from benchmarks.peers.forms import FormError, Forms
from benchmarks.peers.loops import Loop, looping
from benchmarks.peers.results import Result, Sample
from benchmarks.peers.servers import PeerError, Server, running
from benchmarks.peers.workloads import Workload, questions


@dataclass(frozen=True, slots=True)
class Plan:
    """What to measure."""

    peers: Sequence[Peer]  # ours in f32 first: the others are compared with its answers
    models: Sequence[str]
    workloads: Sequence[Workload]
    rounds: int
    requests: int  # of MiniLM's `mixed`; other models and workloads have fewer or more in proportion

    def tasks(self) -> Iterator[tuple[str, bool, list[Workload]]]:
        """(model, whether it reranks, its workloads) in the order of measuring."""
        for model in self.models:
            for rerank in (False, True):
                workloads = [each for each in self.workloads if each.rerank == rerank]
                if workloads:
                    yield model, rerank, workloads

    def estimate_s(self, peak_gflops: float) -> float:
        """Seconds that it takes if peers reach a third of the peak; a start and each quiet second count, too."""
        total = 0.0
        for model, rerank, workloads in self.tasks():
            for peer in [peer for peer in self.peers if peer.takes(model, rerank)]:
                flops = sum(each.flops(peer, model, self.requests) for each in workloads)
                total += flops / (peak_gflops * 1e9 / 3) + 8 + 3 * len(workloads)
        return total * self.rounds


@dataclass(slots=True)
class Comparison:
    """A comparison in progress, which fills `result`."""

    plan: Plan
    forms: Forms
    result: Result
    _ours: dict[tuple[str, str], Answers] = field(default_factory=dict)

    def run(self, first_turn: int, save: Callable[[], None]) -> None:
        """Measure all rounds, every second one in reverse order; `save` is called after each peer."""
        for turn in range(first_turn, first_turn + self.plan.rounds):
            for model, rerank, workloads in self.plan.tasks():
                for peer in self._in_turn(model, rerank, turn):
                    self._measure(peer, model, workloads, turn)
                    save()

    def prepare(self) -> None:
        """Write all forms, and start each of our servers once, which builds its engine."""
        for model, rerank, workloads in self.plan.tasks():
            for peer in self._present(model, rerank):
                with self._faults(peer, model, workloads[0]):
                    folder = self.forms.path(model, rerank, peer.form)
                    if peer.name == OURS:
                        with running(peer, model, folder, self.forms.environments, rerank):
                            pass

    def _in_turn(self, model: str, rerank: bool, turn: int) -> list[Peer]:
        """Ours first, because the others are compared with its answers."""
        peers = list(self._present(model, rerank))
        others = [peer for peer in peers if peer.name != OURS]
        return [peer for peer in peers if peer.name == OURS] + (others[::-1] if turn % 2 else others)

    def _present(self, model: str, rerank: bool) -> Iterator[Peer]:
        for peer in self.plan.peers:
            why = why_missing(peer, self.forms.environments)
            if why:
                self.result.missing[peer.label] = why
            elif peer.takes(model, rerank):
                yield peer

    def _measure(self, peer: Peer, model: str, workloads: Sequence[Workload], turn: int) -> None:
        """The samples of all workloads, from one start of the peer."""
        rerank = workloads[0].rerank
        with self._faults(peer, model, workloads[0]):
            folder = self.forms.path(model, rerank, peer.form)
            start = running if peer.server else looping
            with start(peer, model, folder, self.forms.environments, rerank) as started:
                for workload in workloads:
                    with self._faults(peer, model, workload):
                        self.result.samples.append(self._sample(started, model, workload, turn))
                        print(f"{peer.label}: {self.result.samples[-1]}", flush=True)

    def _sample(self, started: Server | Loop, model: str, workload: Workload, turn: int) -> Sample:
        """One timed run. Raises PeerError if the peer's answers are not those of ours."""
        peer = started.peer
        return Sample(
            model=model,
            workload=workload.name,
            peer=peer.name,
            precision=peer.precision,
            turn=turn,
            agreement=self._agreement(started, model, workload),
            timing=started.measure(workload, workload.num_requests(model, self.plan.requests)),
        )

    def _agreement(self, started: Server | Loop, model: str, workload: Workload) -> float:
        """With the answers of our f32, which are kept. Raises PeerError if it is too low for a peer."""
        answers, case = started.ask(self._compared(workload), workload.rerank), (model, workload.name)
        if started.peer == self.plan.peers[0]:
            self._ours[case] = answers
        if case not in self._ours:
            raise PeerError("our server has not answered yet, so there is nothing to compare with")
        found = agreement(self._ours[case], answers, workload.rerank)
        why = why_no_peer(started.peer.precision, found, workload.rerank)
        if why and started.peer.name != OURS:
            raise PeerError(why)
        return found

    @staticmethod
    def _compared(workload: Workload) -> list[str]:
        count = 1 if workload.batch > 1 else NUM_TEXTS
        return [text for each in questions(workload, 5000 // workload.batch, count) for text in each][:NUM_TEXTS]

    @contextmanager
    def _faults(self, peer: Peer, model: str, workload: Workload) -> Iterator[None]:
        """Notes in the result why a peer was not compared."""
        try:
            yield
        except (PeerError, FormError) as fault:
            name = f"{peer.label}, {model}, {workload.name}"
            print(f"not compared: {name}: {fault}", flush=True)
            self.result.refused[name] = str(fault)

//! Lets one side run at a time.

mod asleep;
mod schedule;

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::thread::gettid;

use super::damage::Damage;
use super::point::Point;

use asleep::{Wait, waits_for};
use schedule::Until;
pub(super) use schedule::{
    Side, Turn, left_ends, left_until, left_until_act, right_ends, right_until, right_until_act,
};

/// Between two looks at a side that runs.
const POLL: Duration = Duration::from_millis(1);
/// So many looks in a row have to find it waiting.
const LOOKS: u32 = 4;

/// Where the sides are.
#[derive(Debug)]
pub(super) struct Stage {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    players: [Player; 2],
    /// What has not been told yet.
    lines: Vec<Line>,
}

#[derive(Debug)]
struct Player {
    /// The thread, once it is there.
    tid: Option<i32>,
    /// How long it may run; none is not at all.
    turn: Option<Until>,
    place: Place,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Running,
    /// Before this.
    Held(Point),
    /// For a lock, or for a page.
    Waiting,
    Ended,
}

/// What a side did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Line {
    pub(super) side: Side,
    pub(super) text: String,
}

impl Stage {
    pub(super) fn new() -> Stage {
        let player = || Player { tid: None, turn: None, place: Place::Running };
        let state = State { players: [player(), player()], lines: Vec::new() };
        Stage { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// The calling thread is `side`; returns with its first turn.
    pub(super) fn begin(&self, side: Side) {
        let mut state = self.lock();
        state.players[side.index()].tid = Some(gettid().as_raw_nonzero().get());
        let waits = |state: &mut State| state.players[side.index()].turn.is_none();
        drop(self.changed.wait_while(state, waits).unwrap_or_else(PoisonError::into_inner));
    }

    /// `side` is about to do `point`; returns when it may.
    pub(super) fn reached(&self, side: Side, point: Point) {
        let mut state = self.lock();
        let player = &mut state.players[side.index()];
        player.place = Place::Running;
        if player.turn.is_none_or(|turn| turn == Until::Before(point)) {
            state = self.hold(state, side, point);
        }
        state.lines.push(Line { side, text: point.to_string() });
    }

    /// `side` is through, or was stopped by `damage`.
    pub(super) fn end(&self, side: Side, damage: Option<&Damage>) {
        let mut state = self.lock();
        state.players[side.index()].place = Place::Ended;
        let text = damage.map_or_else(|| "ends".to_owned(), |damage| format!("stops: {damage}"));
        state.lines.push(Line { side, text });
        self.changed.notify_all();
    }

    fn hold<'s>(
        &'s self,
        mut state: MutexGuard<'s, State>,
        side: Side,
        point: Point,
    ) -> MutexGuard<'s, State> {
        let player = &mut state.players[side.index()];
        (player.turn, player.place) = (None, Place::Held(point));
        self.changed.notify_all();
        let waits = |state: &mut State| state.players[side.index()].turn.is_none();
        let mut state =
            self.changed.wait_while(state, waits).unwrap_or_else(PoisonError::into_inner);
        state.players[side.index()].place = Place::Running;
        state
    }

    /// Gives the sides their turns, and then lets both go on to their ends. `tell` hears what they do.
    ///
    /// # Errors
    /// They have not ended by `deadline`. Their threads are left where they are.
    pub(super) fn conduct(
        &self,
        schedule: &[Turn],
        deadline: Instant,
        tell: &mut dyn FnMut(&Line),
    ) -> Result<(), Damage> {
        let mut tell = |lines: Vec<Line>| lines.iter().for_each(&mut *tell);
        for &turn in schedule {
            self.give(turn);
            self.watch(turn.side, deadline, &mut tell)?;
        }
        // Who waits for the other is waited for behind it.
        for _ in 0..2 {
            for side in [Side::Left, Side::Right] {
                self.give(Turn { side, until: Until::End });
                self.watch(side, deadline, &mut tell)?;
            }
        }
        while !self.have_ended() {
            self.check(deadline)?;
            self.pause(&mut tell);
        }
        tell(std::mem::take(&mut self.lock().lines));
        Ok(())
    }

    fn give(&self, turn: Turn) {
        let player = &mut self.lock().players[turn.side.index()];
        player.turn = Some(turn.until);
        if let Place::Held(_) = player.place {
            player.place = Place::Running;
        }
        self.changed.notify_all();
    }

    /// Returns when `side` is held, or through, or waits for the other.
    fn watch(
        &self,
        side: Side,
        deadline: Instant,
        tell: &mut dyn FnMut(Vec<Line>),
    ) -> Result<(), Damage> {
        let mut looks = 0;
        while let (tid, Place::Running | Place::Waiting) = self.look(side) {
            self.check(deadline)?;
            let wait = tid.and_then(waits_for);
            looks = if wait.is_some() { looks + 1 } else { 0 };
            if let Some(wait) = wait
                && looks == LOOKS
                && self.note_wait(side, wait)
            {
                break;
            }
            self.pause(tell);
        }
        tell(std::mem::take(&mut self.lock().lines));
        Ok(())
    }

    fn look(&self, side: Side) -> (Option<i32>, Place) {
        let player = &self.lock().players[side.index()];
        (player.tid, player.place)
    }

    /// `side` waits for `wait`, unless it went on since.
    fn note_wait(&self, side: Side, wait: Wait) -> bool {
        let mut state = self.lock();
        let player = &mut state.players[side.index()];
        if player.place == Place::Running {
            player.place = Place::Waiting;
            state.lines.push(Line { side, text: wait.to_string() });
        }
        state.players[side.index()].place == Place::Waiting
    }

    fn have_ended(&self) -> bool {
        self.lock().players.iter().all(|player| player.place == Place::Ended)
    }

    fn check(&self, deadline: Instant) -> Result<(), Damage> {
        if Instant::now() < deadline {
            return Ok(());
        }
        let [left, right] = [Side::Left, Side::Right].map(|side| self.look(side).1);
        let what = format!("the replay did not end; left is {left:?}, right is {right:?}");
        Err(Damage::stuck(what))
    }

    /// Waits until a side has come to something, or a moment; tells what it did.
    fn pause(&self, tell: &mut dyn FnMut(Vec<Line>)) {
        let waited = self.changed.wait_timeout(self.lock(), POLL);
        let lines = std::mem::take(&mut waited.unwrap_or_else(PoisonError::into_inner).0.lines);
        tell(lines);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::thread::{JoinHandle, scope, spawn};

    use guest_mm::protocol::Step;

    use super::*;

    const HELD: &str = "with the lock held";
    const NEVER: Duration = Duration::from_secs(60);

    fn conduct(stage: &Stage, schedule: &[Turn], limit: Duration) -> (Vec<String>, bool) {
        let mut told = Vec::new();
        let mut tell = |line: &Line| told.push(format!("{:?} {}", line.side, line.text));
        let ended = stage.conduct(schedule, Instant::now() + limit, &mut tell);
        (told, ended.is_ok())
    }

    #[test]
    fn who_waits_for_a_lock_goes_on_when_it_is_free() {
        let (stage, lock) = (Stage::new(), Mutex::new(()));
        let play = |side, what| {
            stage.begin(side);
            let held = lock.lock();
            stage.reached(side, Point::Act(what));
            drop(held);
            stage.end(side, None);
        };
        let told = scope(|scope| {
            scope.spawn(|| play(Side::Left, HELD));
            scope.spawn(|| play(Side::Right, "after it"));
            conduct(&stage, &[left_until_act(HELD), right_ends(), left_ends()], NEVER)
        });
        let (mut lines, ended) = told;
        assert!(ended && lines[0] == "Right waits for the lock", "{lines:?}");
        // Once the lock is free both go on.
        lines.sort();
        let sorted = [
            "Left -- with the lock held",
            "Left ends",
            "Right -- after it",
            "Right ends",
            "Right waits for the lock",
        ];
        assert_eq!(lines, sorted);
    }

    #[test]
    fn a_stop_that_is_never_reached_ends_with_its_side() {
        let stage = Arc::new(Stage::new());
        let sides = [Side::Left, Side::Right].map(|side| enter(&stage, side));
        let (told, ended) = conduct(&stage, &[left_until(Step::C7), right_ends()], NEVER);
        assert!(ended, "{told:?}");
        assert_eq!(
            told,
            ["Left P2 pin the frame", "Left ends", "Right P2 pin the frame", "Right ends"]
        );
        sides.into_iter().for_each(|side| side.join().unwrap());
    }

    #[test]
    fn a_side_that_does_not_come_ends_the_replay_by_name() {
        let stage = Arc::new(Stage::new());
        let left = enter(&stage, Side::Left);
        let (_, ended) = conduct(&stage, &[left_ends()], Duration::from_millis(20));
        assert!(!ended, "there is no right side");
        left.join().unwrap();
    }

    fn enter(stage: &Arc<Stage>, side: Side) -> JoinHandle<()> {
        let stage = Arc::clone(stage);
        spawn(move || {
            stage.begin(side);
            stage.reached(side, Point::Step(Step::P2));
            stage.end(side, None);
        })
    }
}

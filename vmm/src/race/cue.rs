//! Where the engine's threads say which step they are about to take, and what that means for each of them.

use std::cell::RefCell;
use std::hint::spin_loop;
use std::sync::Arc;
use std::thread::{sleep, yield_now};
use std::time::{Duration, Instant};

use super::dice::Dice;
use super::point::Point;
use super::stage::{Side, Stage, Turn};

/// What the calling thread is.
enum Role {
    /// It does as it likes: fault threads, and those that set up and look after.
    Bystander,
    /// It has a side in a replay, and waits for its turns.
    Player(Arc<Stage>, Side),
    /// It is in a storm, and stumbles.
    Stumbler(Dice, &'static [Turn]),
}

thread_local! {
    static ROLE: RefCell<Role> = const { RefCell::new(Role::Bystander) };
}

/// A side is about to do `what`.
pub(super) fn act(what: &'static str) {
    reached(Point::Act(what));
}

/// From now on the calling thread is `side` of a replay.
pub(super) fn play(stage: &Arc<Stage>, side: Side) {
    ROLE.set(Role::Player(Arc::clone(stage), side));
}

/// From now on the calling thread is one of a storm around `schedule`.
pub(super) fn stumble(dice: Dice, schedule: &'static [Turn]) {
    ROLE.set(Role::Stumbler(dice, schedule));
}

/// The calling thread is about to do `point`.
pub(super) fn reached(point: Point) {
    ROLE.with_borrow_mut(|role| match role {
        Role::Bystander => {}
        Role::Player(stage, side) => stage.reached(*side, point),
        Role::Stumbler(dice, schedule) => linger(dice, schedule, point),
    });
}

/// Mostly nothing, sometimes a moment, and now and then long enough for the other side to get through; more often where the
/// schedule has a stop.
fn linger(dice: &mut Dice, schedule: &[Turn], point: Point) {
    let stops = schedule.iter().any(|turn| turn.stops_at(point));
    let chances = if stops { 0..6 } else { 0..32 };
    match dice.pick(chances) {
        0..2 => sleep(Duration::from_micros(dice.pick(0..1500))),
        2..5 => sleep(Duration::from_micros(dice.pick(0..150))),
        5..7 => yield_now(),
        7..10 => {
            let (since, time) = (Instant::now(), Duration::from_micros(dice.pick(0..20)));
            while since.elapsed() < time {
                spin_loop();
            }
        }
        _ => {}
    }
}

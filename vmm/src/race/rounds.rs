//! A storm on the host: both sides at once, over and over, each stumbling at random steps, with a look at the damage after
//! every round.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::spawn;
use std::time::{Duration, Instant};

use super::cue::stumble;
use super::damage::{Damage, Done, attempt};
use super::dice::Dice;
use super::engine::Engine;
use super::error::LabError;
use super::scene::Scene;
use super::stage::{Side, Turn};
use super::world::World;

/// What a round, or the end, may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Between two words of how far it is.
const TICK: Duration = Duration::from_millis(200);

/// How the sides of a storm stumble.
#[derive(Clone, Copy, Debug)]
pub(super) struct Weather {
    /// Another seed, other random numbers.
    pub(super) seed: u64,
    /// It is mostly at the stops of this.
    pub(super) schedule: &'static [Turn],
}

/// A storm that is over.
#[derive(Debug, Default)]
pub(super) struct Blown {
    /// Rounds, the last of which did the damage if there is any.
    pub(super) rounds: u64,
    pub(super) time: Duration,
    pub(super) damage: Vec<Damage>,
}

/// Lets `scene` go on for `limit`, or until there is damage; `progress` hears how many rounds there were.
pub(super) fn rounds(
    engine: &Engine,
    scene: &'static dyn Scene,
    weather: Weather,
    limit: Duration,
    progress: &dyn Fn(u64),
) -> Result<Blown, LabError> {
    let world = World::new(engine, scene.size())?;
    let counter = Arc::new(AtomicU64::new(0));
    let (tell, told) = channel();
    // In a thread of its own: a look at broken memory may never come back.
    let counted = Arc::clone(&counter);
    spawn(move || tell.send(blow(world, scene, weather, limit, &counted)));
    let since = Instant::now();
    loop {
        match told.recv_timeout(TICK) {
            Ok(blown) => return Ok(blown),
            Err(RecvTimeoutError::Timeout) if since.elapsed() < limit + 2 * PATIENCE => {
                progress(counter.load(Relaxed));
            }
            Err(_) => {
                let damage = vec![Damage::stuck("the look at the memory did not end")];
                return Ok(Blown { rounds: counter.load(Relaxed), time: since.elapsed(), damage });
            }
        }
    }
}

fn blow(
    world: World,
    scene: &'static dyn Scene,
    weather: Weather,
    limit: Duration,
    counter: &AtomicU64,
) -> Blown {
    let world = Arc::new(world);
    let sides = [Side::Left, Side::Right].map(|side| Player::new(&world, scene, weather, side));
    let since = Instant::now();
    let mut damage = Vec::new();
    while damage.is_empty() && since.elapsed() < limit {
        counter.fetch_add(1, Relaxed);
        damage.extend(attempt(|| scene.prepare(&world)).err());
        if !damage.is_empty() {
            break;
        }
        sides.iter().for_each(Player::begin);
        damage.extend(sides.iter().filter_map(|side| side.end().err()));
        damage.extend(attempt(|| scene.verdict(&world)).err());
    }
    let time = since.elapsed();
    drop(sides);
    // Before a stuck side comes back, nothing can be taken down.
    let rest = Instant::now();
    let mut world = Some(world);
    while let Some(shared) = world.take() {
        match Arc::try_unwrap(shared) {
            Ok(own) => damage.extend(own.end()),
            Err(shared) if rest.elapsed() < PATIENCE => {
                std::thread::yield_now();
                world = Some(shared);
            }
            Err(_) => {}
        }
    }
    Blown { rounds: counter.load(Relaxed), time, damage }
}

/// A thread that plays its side whenever it is told to.
struct Player {
    begin: Sender<()>,
    end: Receiver<Done>,
}

impl Player {
    fn new(world: &Arc<World>, scene: &'static dyn Scene, weather: Weather, side: Side) -> Player {
        let ((begin, begins), (ends, end)) = (channel(), channel());
        let world = Arc::clone(world);
        spawn(move || {
            stumble(Dice::new(weather.seed, side as u64), weather.schedule);
            while begins.recv().is_ok() && ends.send(attempt(|| scene.play(side, &world))).is_ok() {
            }
        });
        Player { begin, end }
    }

    fn begin(&self) {
        // A thread that is gone is missed at the end.
        let _ = self.begin.send(());
    }

    fn end(&self) -> Done {
        let late = || Damage::stuck("a side did not end");
        self.end.recv_timeout(PATIENCE).unwrap_or_else(|_| Err(late()))
    }
}

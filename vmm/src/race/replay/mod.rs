//! One interleaving, step by step, on real threads and the engine that ships.
//!
//! A [`Turn`] lets one side run until it is about to take a step, or ends, or waits for a lock that the other side holds
//! or for a page that the other side is to bring. Who waits goes on by itself once it is there.

pub(super) mod columns;

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

use super::cue::play;
use super::damage::{Damage, Done, attempt};
use super::engine::Engine;
use super::error::LabError;
use super::scene::Scene;
use super::stage::{Line, Side, Stage, Turn};
use super::world::World;

/// What a replay may take, set-up and end included.
const LIMIT: Duration = Duration::from_secs(5);

/// A replay that is over.
#[derive(Debug)]
pub(super) struct Played {
    pub(super) time: Duration,
    pub(super) damage: Vec<Damage>,
}

/// Plays `scene` by `schedule`; `tell` hears each step as it is taken.
pub(super) fn replay(
    engine: &Engine,
    scene: &'static dyn Scene,
    schedule: &[Turn],
    tell: &mut dyn FnMut(&Line),
) -> Result<Played, LabError> {
    let since = Instant::now();
    let world = World::new(engine, scene.size())?;
    let damage = perform(world, scene, since + LIMIT, schedule, tell);
    Ok(Played { time: since.elapsed(), damage })
}

fn perform(
    world: World,
    scene: &'static dyn Scene,
    deadline: Instant,
    schedule: &[Turn],
    tell: &mut dyn FnMut(&Line),
) -> Vec<Damage> {
    if let Err(damage) = attempt(|| scene.prepare(&world)) {
        return [damage].into_iter().chain(world.end()).collect();
    }
    let world = Arc::new(world);
    let stage = Arc::new(Stage::new());
    let players = [Side::Left, Side::Right].map(|side| enter(&stage, side, &world, scene));
    if let Err(stuck) = stage.conduct(schedule, deadline, tell) {
        // Its threads, and the memory that they use, are left behind.
        return vec![stuck];
    }
    let mut damage: Vec<Damage> =
        players.into_iter().filter_map(|player| player.join().ok()?.err()).collect();
    // In a thread of its own: a look at broken memory may never come back.
    let (send, found) = channel();
    spawn(move || {
        let seen = attempt(|| scene.verdict(&world)).err();
        let world = Arc::into_inner(world).map(World::end);
        send.send(seen.into_iter().chain(world.into_iter().flatten()).collect::<Vec<_>>())
    });
    let left = deadline.saturating_duration_since(Instant::now());
    let late = |_| vec![Damage::stuck("the look at the memory did not end")];
    damage.extend(found.recv_timeout(left).unwrap_or_else(late));
    damage
}

/// A thread for `side`, which waits for its first turn.
fn enter(
    stage: &Arc<Stage>,
    side: Side,
    world: &Arc<World>,
    scene: &'static dyn Scene,
) -> JoinHandle<Done> {
    let (stage, world) = (Arc::clone(stage), Arc::clone(world));
    spawn(move || {
        play(&stage, side);
        stage.begin(side);
        let done = attempt(|| scene.play(side, &world));
        drop(world);
        stage.end(side, done.as_ref().err());
        done
    })
}

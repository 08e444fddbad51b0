//! Guests that go from one service to another on the real userfaultfd, over real sockets. A thread of this test plays the vCPU: it
//! adds to words of its memory and knows what each has to be.
#![allow(unsafe_code, reason = "plays the guest: accesses the window, which nothing else does")]

mod false_sink;
mod false_source;
mod faults;
mod hand;
mod mill;
mod moves;
mod proxy;
mod recovery;
mod relay;
mod trial;
mod world;

/// Held by a test that has many threads of its own and deadlines: two of them at a time are late on a small machine.
fn alone() -> std::sync::MutexGuard<'static, ()> {
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

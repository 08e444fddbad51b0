//! Guests that go from one service to another on the real userfaultfd, over real sockets. A thread of this test plays the vCPU: it
//! adds to words of its memory and knows what each has to be.
#![allow(unsafe_code, reason = "plays the guest: accesses the window, which nothing else does")]

mod faults;
mod mill;
mod moves;
mod proxy;
mod recovery;
mod world;

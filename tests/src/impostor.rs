//! Something else at a socket where a slat is expected.

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;

/// Does `ask`, while whoever comes to `listener` first is read once and told `answer`.
///
/// # Panics
/// If nobody comes.
pub fn impostor<R>(listener: &UnixListener, answer: &[u8], ask: impl FnOnce() -> R) -> R {
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (mut client, _) = listener.accept().expect("somebody comes");
            let mut request = [0; 64];
            // A client that hangs up has been told enough.
            let _ = client.read(&mut request);
            let _ = client.write_all(answer);
        });
        ask()
    })
}

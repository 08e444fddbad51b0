//! The thread that answers.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::request::{Command, LONGEST, VERSION, refusal};
use super::socket::{Listener, SocketFile};

/// What a client has from its connection to its answer.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// Makes the answer to a command: one line of JSON. What takes long may say how far it is meanwhile.
pub(super) type Answers = dyn FnMut(Command, &mut dyn FnMut(Progress)) -> String + Send;

/// How far a command is: done, of how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Progress {
    /// So much is done.
    pub done: u64,
    /// Of so much.
    pub of: u64,
}

/// How such a line begins.
pub(super) const PROGRESS: &str = "{\"slat\":1,\"progress\":";
const _: () = assert!(VERSION == 1);

impl Progress {
    /// One line of JSON, its end included.
    pub(super) fn to_line(self) -> String {
        let Progress { done, of } = self;
        format!("{PROGRESS}{{\"done\":{done},\"of\":{of}}}}}\n")
    }
}

/// A socket that is served. Dropping it ends the service at once, whatever a client does, and removes the socket's file.
#[derive(Debug)]
pub struct Server {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
    file: Option<SocketFile>,
}

impl Server {
    /// Serves `listener` on a thread of its own; `answer` makes the answers, one at a time.
    ///
    /// # Errors
    /// What the system says; the socket's file is gone then.
    pub fn start(
        listener: Listener,
        answer: impl FnMut(Command, &mut dyn FnMut(Progress)) -> String + Send + 'static,
    ) -> io::Result<Server> {
        Server::with_patience(listener, PATIENCE, Box::new(answer))
    }

    fn with_patience(
        listener: Listener,
        patience: Duration,
        answer: Box<Answers>,
    ) -> io::Result<Server> {
        let Listener { socket, file } = listener;
        let stop = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let stop = Arc::new(stop);
        let stopped = Arc::clone(&stop);
        let mut service = Service { socket, stopped, patience, answer };
        let thread = Builder::new().name("control".into()).spawn(move || service.run())?;
        Ok(Server { stop, thread: Some(thread), file: Some(file) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // While it is there, somebody listens.
        drop(self.file.take());
        // Cannot fail: the counter is far from full. The thread waits nowhere but for this and a client.
        let _ = rustix::io::write(&self.stop, &1_u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            // One that panicked has said so already, and the machine is none the worse for it.
            let _ = thread.join();
        }
    }
}

/// The thread's own.
struct Service {
    socket: UnixListener,
    stopped: Arc<OwnedFd>,
    patience: Duration,
    answer: Box<Answers>,
}

/// Why a client is let go.
#[derive(Debug)]
enum Gone {
    /// The machine ends.
    Stopped,
    /// It took too long.
    Late,
    /// It has closed its end, or worse.
    Lost,
}

impl Service {
    fn run(&mut self) {
        loop {
            match self.wait(&self.socket, PollFlags::IN, None) {
                Err(Gone::Stopped) => return,
                Err(Gone::Late | Gone::Lost) => continue,
                Ok(()) => {}
            }
            match self.socket.accept() {
                Ok((client, _)) => {
                    if let Err(Gone::Stopped) = self.serve(&client) {
                        return;
                    }
                }
                // Who has gone again is no error; out of descriptors is, and it is not cured by asking at once.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    fn serve(&mut self, client: &UnixStream) -> Result<(), Gone> {
        client.set_nonblocking(true).map_err(|_| Gone::Lost)?;
        let mut deadline = Instant::now() + self.patience;
        let response = match self.request(client, deadline) {
            Ok(line) => match Command::parse(&line) {
                Ok(command) => {
                    // To who does not read, it is not told.
                    let mut tell = |progress: Progress| {
                        let _ = (&*client).write(progress.to_line().as_bytes());
                    };
                    let response = (self.answer)(command, &mut tell);
                    // The time that the machine took is not the client's.
                    deadline = deadline.max(Instant::now() + self.patience / 2);
                    response
                }
                Err(error) => error.to_line(),
            },
            Err(Gone::Late) => {
                // One try: who has been silent for so long may be so for longer.
                let seconds = self.patience.as_secs();
                let line = refusal(&format!("no request came within {seconds} s"));
                let _ = (&*client).write(line.as_bytes());
                return Ok(());
            }
            Err(gone) => return Err(gone),
        };
        self.respond(client, response.as_bytes(), deadline)
    }

    /// The bytes up to the first newline, or one more than a request may have.
    fn request(&self, mut client: &UnixStream, deadline: Instant) -> Result<Vec<u8>, Gone> {
        let mut line = Vec::new();
        let mut chunk = [0; 512];
        loop {
            let room = chunk.len().min(LONGEST + 1 - line.len());
            match client.read(&mut chunk[..room]) {
                // A line may end with the stream.
                Ok(0) if line.is_empty() => return Err(Gone::Lost),
                Ok(0) => return Ok(line),
                Ok(count) => {
                    let new = &chunk[..count];
                    if let Some(end) = new.iter().position(|&byte| byte == b'\n') {
                        line.extend_from_slice(&new[..end]);
                        return Ok(line);
                    }
                    line.extend_from_slice(new);
                    if line.len() > LONGEST {
                        return Ok(line);
                    }
                }
                Err(error) => self.retry(client, &error, PollFlags::IN, deadline)?,
            }
        }
    }

    fn respond(
        &self,
        mut client: &UnixStream,
        mut rest: &[u8],
        deadline: Instant,
    ) -> Result<(), Gone> {
        while !rest.is_empty() {
            match client.write(rest) {
                Ok(count) => rest = &rest[count..],
                Err(error) => self.retry(client, &error, PollFlags::OUT, deadline)?,
            }
        }
        Ok(())
    }

    /// Waits where `error` says that there is something to wait for.
    fn retry(
        &self,
        client: &UnixStream,
        error: &io::Error,
        what: PollFlags,
        deadline: Instant,
    ) -> Result<(), Gone> {
        match error.kind() {
            io::ErrorKind::Interrupted => Ok(()),
            io::ErrorKind::WouldBlock => self.wait(client, what, Some(deadline)),
            _ => Err(Gone::Lost),
        }
    }

    /// Waits until `socket` is ready for `what`, and not longer than the machine lasts.
    fn wait(
        &self,
        socket: &impl AsFd,
        what: PollFlags,
        deadline: Option<Instant>,
    ) -> Result<(), Gone> {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        if left == Some(Duration::ZERO) {
            return Err(Gone::Late);
        }
        let left = left.and_then(|left| Timespec::try_from(left).ok());
        let mut sources = [PollFd::new(&self.stopped, PollFlags::IN), PollFd::new(socket, what)];
        // Interrupted is as good as ready: the caller tries, and comes back.
        let ready = poll(&mut sources, left.as_ref());
        if !sources[0].revents().is_empty() {
            return Err(Gone::Stopped);
        }
        if ready == Ok(0) { Err(Gone::Late) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests;

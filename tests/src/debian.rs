//! Debian's guest of configs/debian.toml: its console as a dialogue.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use crate::{Output, Report, Running, Scratch, Slat, Terminal, skip_unless_refused, tree};

/// What its first process prints when it is up, and its shell when it has nothing to do.
const UP: &str = "slat: init is up, kernel 6.";
const PROMPT: &str = "guest# ";

/// Whether configs/get-debian.sh has been run.
pub fn require_debian() -> bool {
    let folder = tree::root().join("configs/debian");
    let there = ["vmlinuz", "initramfs.cpio", "root.ext4", "guest-tool"];
    let there = there.iter().all(|file| folder.join(file).exists());
    if !there {
        skip_unless_refused("configs/debian is not there (run configs/get-debian.sh)");
    }
    there
}

/// A machine that boots it, or has. It has a copy of the disk, so that it finds it as it was made.
#[derive(Debug)]
pub struct Debian {
    running: Running,
    scratch: Scratch,
    terminal: Option<Terminal>,
    /// What is behind this of the console has not been looked at.
    seen: usize,
    asked: usize,
}

/// What a command said, and how it ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The console from the command to its end, with the command's echo.
    pub text: String,
    /// Its exit code.
    pub code: i32,
}

impl Debian {
    /// Starts `command`, to which the arguments of `slat` are added, with `sets` as overrides of the config. With a terminal,
    /// it is typed at there.
    pub fn start(
        slat: Slat,
        mut command: Command,
        sets: &[&str],
        terminal: Option<Terminal>,
    ) -> Debian {
        let scratch = Scratch::new();
        let disk = scratch.path().join("root.ext4");
        let made = tree::root().join("configs/debian/root.ext4");
        fs::copy(&made, &disk).unwrap_or_else(|error| panic!("{}: {error}", made.display()));
        command.arg("run").arg(tree::root().join("configs/debian.toml"));
        describe(&scratch, &mut command, sets);
        match &terminal {
            Some(terminal) => terminal.give(&mut command),
            None => {
                command.stdin(Stdio::piped());
            }
        }
        Debian { running: slat.start(command), scratch, terminal, seen: 0, asked: 0 }
    }

    /// Its folder, gone when this is dropped.
    pub fn folder(&self) -> &Path {
        self.scratch.path()
    }

    /// Whether it came up before it ended. Panics at the limit.
    pub fn comes_up(&mut self) -> bool {
        self.wait_for(UP) && self.wait_for(PROMPT)
    }

    /// Waits until it is up. Panics if it ends before.
    pub fn boot(&mut self) {
        let up = self.comes_up();
        assert!(up, "it ended before it was up: {}", self.running.stdout());
        println!("up after {:.0} s", self.running.age().as_secs_f64());
    }

    /// Waits for `text` behind what was seen, and says whether it came before the machine's end.
    pub fn wait_for(&mut self, text: &str) -> bool {
        let seen = self.seen;
        let found = self.running.find(text, |console| {
            let at = console.get(seen..)?.find(text)?;
            Some(seen + at + text.len())
        });
        self.seen = found.unwrap_or(self.seen);
        found.is_some()
    }

    /// Types `bytes`.
    pub fn type_in(&mut self, bytes: &[u8]) {
        match &self.terminal {
            Some(terminal) => terminal.type_in(bytes),
            None => self.running.type_in(bytes),
        }
    }

    /// Types `command` at the prompt and waits for its end and the next prompt.
    pub fn ask(&mut self, command: &str) -> Answer {
        let before = self.running.age();
        self.begin(command);
        let answer = self.result();
        println!("{command}: {:.1} s", (self.running.age() - before).as_secs_f64());
        answer
    }

    /// Types `command` at the prompt.
    pub fn begin(&mut self, command: &str) {
        self.asked += 1;
        let asked = self.asked;
        self.type_in(format!("{command}; echo \"={asked}=$?\"\r").as_bytes());
    }

    /// Waits for the end of what was begun last, and the next prompt.
    pub fn result(&mut self) -> Answer {
        let (seen, asked) = (self.seen, self.asked);
        let found = self.running.find("its end", |console| answer(console, seen, asked));
        let Some((answer, seen)) = found else {
            panic!("it ended in command {asked}: {}", self.running.stdout());
        };
        self.seen = seen;
        assert!(self.wait_for(PROMPT), "no prompt behind it: {}", self.running.stdout());
        answer
    }

    /// Starts a machine like this one, on the same disk, that a guest can come into from `listen`.
    pub fn receiver(&self, slat: Slat, listen: &str, sets: &[&str]) -> Running {
        let mut command = slat.command(["receive"]);
        command.arg(tree::root().join("configs/debian.toml")).args(["--listen", listen]);
        describe(&self.scratch, &mut command, sets);
        command.stdin(Stdio::piped());
        slat.start(command)
    }

    /// It is there now, and its old place is about to end.
    pub fn moved(&mut self, to: Running) {
        let left = std::mem::replace(&mut self.running, to).finish();
        assert_eq!(left.code, Some(0), "{left:?}");
        self.seen = 0;
    }

    /// The same for a command that has to end well.
    pub fn tell(&mut self, command: &str) -> Answer {
        let answer = self.ask(command);
        assert_eq!(answer.code, 0, "{command}: {}", answer.text);
        answer
    }

    /// Waits for its end, which is because it was saved in `folder`, and runs it from there, with `set` as its override; what it
    /// had said.
    pub fn goes_on_from(&mut self, slat: Slat, folder: &Path, set: &str) -> String {
        let mut command = slat.command(["restore"]);
        command.arg(folder).arg("--set").arg(set);
        command.arg("--json-report").arg(self.scratch.path().join("report.json"));
        command.stdin(Stdio::piped());
        while !self.running.has_ended() {
            assert!(self.running.age() < Duration::from_secs(300), "it was saved, and did not end");
            sleep(Duration::from_millis(5));
        }
        let said = self.running.stdout();
        self.running = slat.start(command);
        self.seen = 0;
        said
    }

    /// Types `how` (`poweroff`, `exit`, `reboot`), waits for the end, and checks the books and the disk.
    pub fn end(mut self, how: &str) -> (Output, Report) {
        self.type_in(format!("{how}\r").as_bytes());
        let output = self.running.finish();
        assert!(!output.timed_out, "{output:?}");
        assert_eq!(output.code, Some(0), "{output:?}");
        let report = Report::read(&self.scratch.path().join("report.json"));
        assert_eq!(report.text("audit"), "clean", "{output:?}");
        check_disk(&self.scratch.path().join("root.ext4"));
        if let Some(terminal) = &self.terminal {
            terminal.assert_restored(how);
        }
        println!("ended after {:.0} s: {}", output.took.as_secs_f64(), report.text("reason"));
        (output, report)
    }

    /// What is left of one that ended by itself.
    pub fn finish(self) -> (Output, Report) {
        let output = self.running.finish();
        assert!(!output.timed_out, "{output:?}");
        (output, Report::read(&self.scratch.path().join("report.json")))
    }
}

impl Answer {
    /// The last line that begins with `run` and a colon, behind it. Panics if there is none.
    pub fn line(&self, run: &str) -> &str {
        let lines = self.text.lines().rev();
        let mut rests = lines.filter_map(|line| line.strip_prefix(run)?.strip_prefix(": "));
        rests.next().unwrap_or_else(|| panic!("no {run}: line in {}", self.text)).trim_end()
    }

    /// The number after `key=` in that line.
    pub fn number(&self, run: &str, key: &str) -> u64 {
        let line = self.line(run);
        let value = line.split(' ').find_map(|word| word.strip_prefix(key)?.strip_prefix('='));
        let value = value.and_then(|value| value.parse().ok());
        value.unwrap_or_else(|| panic!("no number {key}= in {line:?}"))
    }
}

/// What a machine with this folder has beside the config, with `sets`.
fn describe(scratch: &Scratch, command: &mut Command, sets: &[&str]) {
    command.arg("--json-report").arg(scratch.path().join("report.json"));
    let disk = scratch.path().join("root.ext4");
    command.arg("--set").arg(format!("disk.root.file={}", disk.display()));
    for set in sets {
        command.args(["--set", set]);
    }
}

/// The answer to command `asked` in what of `console` is behind `seen`, and where it ends. The command's echo has `$?` where the
/// answer has the code.
fn answer(console: &str, seen: usize, asked: usize) -> Option<(Answer, usize)> {
    let new = console.get(seen..)?;
    let mark = format!("={asked}=");
    new.match_indices(&mark).find_map(|(at, _)| {
        let behind = &new[at + mark.len()..];
        // The whole line: of one that is not complete the code may be.
        let (code, _) = behind.split_once('\n')?;
        let code = code.trim_end().parse().ok()?;
        let end = seen + at + mark.len();
        Some((Answer { text: new[..at].to_owned(), code }, end))
    })
}

/// Checks a file system that nobody has mounted, where e2fsck is to be had.
fn check_disk(disk: &Path) {
    let places = ["/usr/sbin/e2fsck", "/sbin/e2fsck"].map(PathBuf::from);
    let Some(e2fsck) = places.iter().find(|path| path.exists()) else {
        println!("no e2fsck: the disk is not looked at from outside");
        return;
    };
    let checked = Command::new(e2fsck).arg("-fn").arg(disk).output();
    let checked = checked.unwrap_or_else(|error| panic!("{}: {error}", e2fsck.display()));
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A console as it was recorded: the shell asks for the cursor's place behind each prompt, echoes what is typed, and the kernel
    /// speaks in between.
    const RECORDED: &str = "slat: init is up, kernel 6.1.0-56-cloud-amd64, 222508 kB of memory\r\n\r\n\r\n\
        BusyBox v1.35.0 (Debian 1:1.35.0-4+deb12u1+b1) built-in shell (ash)\r\n\r\n\
        guest# \x1b[6nfiletree /t 7 100 40000; echo \"=1=$?\"\r\n\
        [    4.147983] filetree (88): drop_caches: 3\r\n\
        filetree: files=100 bytes=4221120 wrong=0 write_ms=404\r\n=1=0\r\n\
        guest# \x1b[6nsleep 9; echo \"=2=$?\"\r\n^C\r\n=2=130\r\nguest# \x1b[6n";

    #[test]
    fn answers_are_found_behind_their_echo() {
        let (first, seen) = answer(RECORDED, 0, 1).unwrap();
        assert_eq!(first.code, 0);
        assert_eq!(first.line("filetree"), "files=100 bytes=4221120 wrong=0 write_ms=404");
        assert_eq!(first.number("filetree", "bytes"), 4_221_120);
        assert_eq!(first.number("filetree", "wrong"), 0);
        let (second, seen) = answer(RECORDED, seen, 2).unwrap();
        assert_eq!(second.code, 130);
        assert!(second.text.contains("^C") && !second.text.contains("filetree"), "{second:?}");
        assert_eq!(answer(RECORDED, seen, 3), None);
    }

    #[test]
    fn an_answer_that_is_not_whole_is_none_yet() {
        let whole = RECORDED.find("=2=130\r\n").unwrap() + "=2=130\r\n".len();
        let start = RECORDED.find("sleep").unwrap();
        for end in start..whole {
            assert_eq!(answer(&RECORDED[..end], start, 2), None, "{end}");
        }
        assert!(answer(&RECORDED[..whole], start, 2).is_some());
    }

    #[test]
    #[should_panic(expected = "no number wrogn=")]
    fn a_key_that_is_not_there_is_named() {
        answer(RECORDED, 0, 1).unwrap().0.number("filetree", "wrogn");
    }
}

//! The first process of the guest, in the initramfs and then in the root file system: loads the drivers of the devices that are
//! there, mounts the disk, starts one shell, and powers the machine off when that ends.
//!
//! It is a single process, as a script would be one for each line of it.

mod address;
mod children;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use rustix::mount::{MountFlags, mount, mount_move, mount_remount};
use rustix::process::{chdir, chroot, ioctl_tiocsctty, setsid};
use rustix::system::{RebootCommand, finit_module, reboot, sysinfo, uname};

use children::{Children, End};

/// The drivers, in the order in which they need each other: a line is a virtio device's number, or `-`, and a file beside this one.
const DRIVERS: &str = "/lib/modules/virtio.list";

/// The disk with the root file system, and where it is mounted at first.
const DISK: &str = "/dev/vda";
const ROOT: &str = "/root";

/// The name by which the initramfs starts this program, and that by which the root file system does.
const FIRST: &str = "/init";
const SECOND: &str = "/sbin/init";

/// Runs as process 1, called by `name`. It never ends, for the kernel would panic then.
pub(crate) fn run(name: &str) -> ! {
    mount_kernel_folders(&["devtmpfs /dev", "sysfs /sys"]);
    if name == FIRST {
        load_drivers();
        if Path::new(DISK).exists() {
            // Only comes back with what went wrong; the initramfs has a shell too.
            complain(DISK, &switch_root());
        }
    }
    // Not before: each mount of it is one more.
    mount_kernel_folders(&["proc /proc"]);
    if let Err(error) = bring_network_up() {
        complain("slat.ip", &error);
    }
    // What a test waits for on the console.
    println!(
        "slat: init is up, kernel {}, {} kB of memory",
        uname().release().to_string_lossy(),
        sysinfo().totalram / 1024
    );
    let end = shell().unwrap_or_else(|error| {
        complain("sh", &error);
        End::PowerOff
    });
    finish(end)
}

fn complain(what: &str, error: &dyn std::fmt::Display) {
    eprintln!("slat: {what}: {error}");
}

/// Mounts what the kernel makes. What is mounted already, as by the process before, stays.
fn mount_kernel_folders(folders: &[&str]) {
    for (kind, folder) in folders.iter().filter_map(|pair| pair.split_once(' ')) {
        match mount(kind, folder, kind, MountFlags::empty(), None) {
            Ok(()) | Err(rustix::io::Errno::BUSY) => {}
            Err(error) => complain(folder, &error),
        }
    }
}

/// Loads the drivers of the bus, and then those of the devices on it: the kernel checks a signature of each, which takes longest.
fn load_drivers() {
    let list = fs::read_to_string(DRIVERS).unwrap_or_default();
    load(&list, |device| device.is_none());
    let there = devices();
    load(&list, |device| device.is_some_and(|device| there.contains(&device)));
}

fn load(list: &str, wanted: impl Fn(Option<u32>) -> bool) {
    for (_, file) in drivers(list).filter(|&(device, _)| wanted(device)) {
        let path = Path::new(DRIVERS).with_file_name(file);
        let loaded = File::open(&path).and_then(|file| Ok(finit_module(file, c"", 0)?));
        if let Err(error) = loaded {
            complain(file, &error);
        }
    }
}

/// The lines of [`DRIVERS`].
fn drivers(list: &str) -> impl Iterator<Item = (Option<u32>, &str)> {
    let lines = list.lines().filter_map(|line| line.split_once(' '));
    lines.map(|(device, file)| (device.parse().ok(), file))
}

/// The numbers of the virtio devices that are there.
fn devices() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/sys/bus/virtio/devices") else { return Vec::new() };
    let numbers = entries.filter_map(|entry| {
        let text = fs::read_to_string(entry.ok()?.path().join("device")).ok()?;
        u32::from_str_radix(text.trim_end().strip_prefix("0x")?, 16).ok()
    });
    numbers.collect()
}

/// Makes the disk the root, as switch_root(8) does, and becomes its first process. Comes back if that fails.
fn switch_root() -> io::Error {
    let switched = || -> io::Result<()> {
        // The maps of free blocks are few: no thread has to be started that reads them ahead.
        mount(DISK, ROOT, "ext4", MountFlags::NOATIME, c"no_prefetch_block_bitmaps")?;
        for folder in ["/dev", "/sys"] {
            mount_move(folder, format!("{ROOT}{folder}"))?;
        }
        // The initramfs is memory as long as its files are there.
        for folder in ["/bin", "/lib/modules"] {
            for entry in fs::read_dir(folder)? {
                fs::remove_file(entry?.path())?;
            }
        }
        fs::remove_file(FIRST)?;
        chdir(ROOT)?;
        mount_move(".", "/")?;
        chroot(".")?;
        chdir("/")?;
        Ok(())
    };
    match switched() {
        Ok(()) => Command::new(SECOND).exec(),
        Err(error) => error,
    }
}

/// Gives the first network interface the address of the kernel's parameter `slat.ip=ADDRESS/BITS`.
fn bring_network_up() -> io::Result<()> {
    const INTERFACE: &str = "eth0";
    if !Path::new("/sys/class/net").join(INTERFACE).exists() {
        return Ok(());
    }
    let cmdline = fs::read_to_string("/proc/cmdline")?;
    match parameter(&cmdline, "slat.ip").map(address::parse) {
        Some(Some((address, mask))) => address::assign(INTERFACE, address, mask),
        Some(None) => Err(io::Error::other("expected an address like 10.0.0.2/24")),
        None => Ok(()),
    }
}

/// The value of the parameter `name`; the last one counts.
fn parameter<'a>(cmdline: &'a str, name: &str) -> Option<&'a str> {
    let values = cmdline.split_ascii_whitespace().filter_map(|word| word.split_once('='));
    values.rev().find(|&(key, _)| key == name).map(|(_, value)| value)
}

/// Runs a shell on the console's terminal until it ends or somebody asks for the machine's end.
fn shell() -> io::Result<End> {
    // /dev/console can be nobody's terminal, and without one Ctrl-C reaches nothing.
    let active = fs::read_to_string("/sys/class/tty/console/active").unwrap_or_default();
    let terminal = Path::new("/dev").join(active.split_whitespace().last().unwrap_or("ttyS0"));
    let terminal =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(terminal)?;
    let mut command = Command::new("/bin/busybox");
    command.arg0("sh").env_clear().current_dir("/");
    command.envs([("PATH", "/bin:/sbin"), ("HOME", "/"), ("TERM", "vt100"), ("PS1", "guest# ")]);
    command.stdin(terminal.try_clone()?).stdout(terminal.try_clone()?).stderr(terminal);
    let children = Children::watch()?;
    let begin = move || {
        children.deliver()?;
        setsid()?;
        Ok(ioctl_tiocsctty(io::stdin())?)
    };
    #[allow(unsafe_code, reason = "what runs between fork and exec")]
    // SAFETY: it makes three system calls and allocates nothing.
    unsafe {
        command.pre_exec(begin);
    }
    let shell = command.spawn()?;
    Ok(children.until(shell.id()))
}

/// Ends every other process, leaves the disk as after an unmount, and the machine.
fn finish(end: End) -> ! {
    children::end_all();
    rustix::fs::sync();
    let read_only = MountFlags::RDONLY | MountFlags::NOATIME;
    if let Err(error) = mount_remount("/", read_only, c"")
        && mounted_disk()
    {
        complain("/", &error);
    }
    let command = match end {
        End::PowerOff => RebootCommand::PowerOff,
        End::Reset => RebootCommand::Restart,
    };
    if let Err(error) = reboot(command) {
        complain("reboot", &error);
    }
    // A machine that cannot do it: it is at rest at least.
    loop {
        std::thread::park();
    }
}

/// Whether `/` is a disk: the initramfs has nothing that could be lost.
fn mounted_disk() -> bool {
    rustix::fs::stat("/").is_ok_and(|root| rustix::fs::major(root.st_dev) != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drivers_are_listed_with_their_device_or_without() {
        let list = "- virtio.ko\n2 virtio_blk.ko\n\n";
        let found: Vec<_> = drivers(list).collect();
        assert_eq!(found, [(None, "virtio.ko"), (Some(2), "virtio_blk.ko")]);
    }

    #[test]
    fn parameters_are_whole_words_and_the_last_one_counts() {
        let cmdline = "console=ttyS0 xslat.ip=1 slat.ip=a slat.ip=b/24 quiet\n";
        assert_eq!(parameter(cmdline, "slat.ip"), Some("b/24"));
        assert_eq!(parameter(cmdline, "quiet"), None);
        assert_eq!(parameter("", "slat.ip"), None);
    }
}

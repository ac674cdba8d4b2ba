//! The resource types: the twenty of FIG. 7 in its order, and from 64 on what Linux has gained since.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! kinds {
    ($($(#[$documentation:meta])* $name:ident = $code:literal, $word:literal;)+) => {
        /// A resource type. The codes never change.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[repr(u16)]
        pub enum Kind {
            $($(#[$documentation])* $name = $code,)+
        }

        impl Kind {
            /// Every kind, in the order of its code.
            pub const ALL: &[Kind] = &[$(Kind::$name,)+];

            /// The code in a record's header.
            #[must_use]
            pub const fn code(self) -> u16 {
                self as u16
            }

            /// The kind with this code, if this program knows it.
            #[must_use]
            pub const fn from_code(code: u16) -> Option<Kind> {
                match code {
                    $($code => Some(Kind::$name),)+
                    _ => None,
                }
            }

            /// The name for people, in the words of FIG. 7.
            #[must_use]
            pub const fn word(self) -> &'static str {
                match self {
                    $(Kind::$name => $word,)+
                }
            }
        }
    };
}

kinds! {
    /// Interval timers and POSIX timers of a process.
    Alarm = 1, "alarm";
    /// An open file, directory or device.
    File = 2, "file";
    /// Signal actions, masks, pending signals, alternate stacks.
    Signal = 3, "signal";
    /// Current directory, root and umask.
    CurrentDirectory = 4, "current directory";
    /// The application ID.
    ApplicationVirtualId = 5, "application virtual id";
    /// The network of the application's environment.
    ApplicationVirtualNetMask = 6, "application virtual net mask";
    /// A path that leads elsewhere for this application.
    DynamicSymbolicLink = 7, "dynamic symbolic link";
    /// Resource limits of a process.
    ResourceLimit = 8, "resource limit";
    /// A process.
    Process = 9, "process";
    /// The image itself: when, where, from what.
    Snapshot = 10, "snapshot";
    /// A System V semaphore set.
    Semaphore = 11, "semaphore";
    /// The platform that the application believes in.
    PlatformName = 12, "platform name";
    /// Data that waits in a pipe, socket or queue.
    DataQueued = 13, "data queued";
    /// Whether a process runs, is stopped, or has ended.
    ProcessStatus = 14, "process status";
    /// User, group, capabilities of a thread.
    Credentials = 15, "credentials";
    /// A lock on a file.
    FileLocking = 16, "file locking";
    /// Contents of memory.
    MmapMemory = 17, "mmap memory";
    /// The layout of an address space.
    ProcessMap = 18, "process map";
    /// Scheduling of a thread.
    ScheduleControl = 19, "schedule control";
    /// A thread.
    LightweightProcess = 20, "lightweight process";
    /// A namespace.
    Namespace = 64, "namespace";
    /// A mount.
    Mount = 65, "mount";
    /// A control group.
    ControlGroup = 66, "control group";
    /// An internet socket.
    Connection = 67, "connection";
    /// Memory that several mappings share.
    SharedSegment = 68, "shared segment";
    /// A message queue.
    MessageQueue = 69, "message queue";
    /// A terminal.
    Terminal = 70, "terminal";
    /// Seccomp filters and the like.
    Sandbox = 71, "sandbox";
    /// Offsets of clocks.
    Clock = 72, "clock";
    /// The generation of a clone.
    Generation = 73, "generation";
    /// A table of descriptors.
    DescriptorTable = 74, "descriptor table";
    /// A pipe or FIFO.
    Pipe = 75, "pipe";
    /// An eventfd.
    EventDescriptor = 76, "event descriptor";
    /// An epoll set.
    Epoll = 77, "epoll";
    /// A signalfd.
    SignalDescriptor = 78, "signal descriptor";
    /// A timerfd.
    TimerDescriptor = 79, "timer descriptor";
    /// A unix socket.
    UnixSocket = 80, "unix socket";
    /// A file without a name whose content is in the image.
    NamelessFile = 81, "nameless file";
    /// A pidfd.
    ProcessDescriptor = 90, "process descriptor";
    /// A descriptor of a namespace.
    NamespaceDescriptor = 91, "namespace descriptor";
    /// An inotify instance.
    Inotify = 92, "inotify";
    /// A fanotify group.
    Fanotify = 93, "fanotify";
    /// A pseudo-terminal.
    PseudoTerminal = 94, "pseudo-terminal";
    /// A POSIX message queue.
    PosixMessageQueue = 95, "posix message queue";
    /// An IPC namespace of the application's own.
    IpcNamespace = 96, "ipc namespace";
    /// A BPF map.
    BpfMap = 97, "bpf map";
    /// A packet socket.
    PacketSocket = 98, "packet socket";
    /// A UTS namespace of the application's own.
    UtsNamespace = 99, "uts namespace";
    /// An io_uring.
    IoUring = 110, "io_uring";
}

impl fmt::Display for Kind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.word())
    }
}

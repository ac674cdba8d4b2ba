//! The list of all error codes: stable names, exit classes, and what to do.

/// What kind of failure it is: decides the exit status of the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Class {
    /// A fault of vckpt.
    Internal = 1,
    /// A wrong command line.
    Usage = 2,
    /// The target is in a state that is not supported; nothing was changed.
    Unsupported = 3,
    /// This host lacks a feature or a privilege.
    Host = 4,
    /// Something around the image differs: a file, the processor, an address, a process ID.
    Environment = 5,
    /// The image is damaged or of another format.
    Image = 6,
    /// Writing or reading the image failed.
    Transfer = 7,
    /// The target could not be stopped in time.
    Timeout = 8,
    /// The target ended meanwhile.
    TargetLost = 9,
    /// Something would not be exact, and the user insisted.
    Degraded = 10,
}

/// A stable error code.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Code {
    /// The name, such as `VC-FD-001`.
    pub name: &'static str,
    /// Its class.
    pub class: Class,
    /// What to do about it; shown when the error itself says nothing better.
    pub hint: &'static str,
}

impl std::fmt::Debug for Code {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.name)
    }
}

macro_rules! codes {
    ($($(#[$documentation:meta])* $name:ident = $text:literal, $class:ident, $hint:literal;)+) => {
        $($(#[$documentation])* pub const $name: Code = Code { name: $text, class: Class::$class, hint: $hint };)+

        /// Every code.
        pub const ALL: &[Code] = &[$($name,)+];
    };
}

codes! {
    /// A broken assumption of ours.
    INTERNAL = "VC-INT-001", Internal, "this is a fault of vckpt: please report it with the output of the same command and -vv";
    /// Whoever called has ended it.
    CANCELLED = "VC-INT-002", Internal, "run the same command again";
    /// There is no such process.
    NO_PROCESS = "VC-PID-001", Unsupported, "look for the process ID with ps or pgrep";
    /// The process may not be traced.
    NOT_PERMITTED = "VC-PID-002", Host, "run vckpt as the owner of the process, or as root";
    /// A kernel thread.
    KERNEL_THREAD = "VC-PID-003", Unsupported, "kernel threads belong to the kernel and can't be dumped";
    /// vckpt itself or one of its ancestors.
    OWN_ANCESTOR = "VC-PID-004", Unsupported, "vckpt can't freeze the processes that it runs under: run it from another shell or session";
    /// Another process traces the target.
    ALREADY_TRACED = "VC-PID-005", Unsupported, "end the debugger or tracer first";
    /// The target ended while it was dumped.
    TARGET_DIED = "VC-PID-006", TargetLost, "start it again, and dump it when it is settled";
    /// A task could not be stopped.
    FREEZE_TIMEOUT = "VC-PID-007", Timeout, "the task may hang in the kernel (state D in ps): look at its wchan, and try again later";
    /// A process ID is taken.
    PID_TAKEN = "VC-PID-008", Environment, "leave out --pids same, so that a fresh PID namespace is used";
    /// The tree never settled.
    TREE_UNSETTLED = "VC-PID-009", Timeout, "new processes were born faster than they could be stopped: try again";
    /// Sharing between processes that is not supported yet.
    SHARED_BETWEEN_PROCESSES = "VC-PID-010", Unsupported, "this sharing between processes is not supported yet";
    /// A process group or session that can't be rebuilt yet.
    SESSION_SHAPE = "VC-PID-011", Unsupported, "this shape of sessions or process groups is not supported yet";
    /// One task of the tree traces another one.
    TRACED_WITHIN = "VC-PID-012", Unsupported, "let the tracer detach from it first: who traces whom can't be restored";
    /// A read of /proc failed or gave something unknown.
    PROC = "VC-PROC-001", Internal, "this kernel shows something that vckpt does not know: please report it";
    /// A ptrace request failed.
    PTRACE = "VC-TRC-001", Internal, "please report it with the output of the same command and -vv";
    /// The stub could not be put in place.
    INJECT = "VC-TRC-002", Internal, "please report it with the output of the same command and -vv";
    /// The target has too little left of a limit of its own for the stubs.
    TARGET_LIMITS = "VC-TRC-007", Unsupported, "raise the limits of the process, as with prlimit --pid PID --nofile=65536 --as=unlimited --memlock=unlimited";
    /// The stub did not answer.
    STUB_SILENT = "VC-TRC-003", Internal, "please report it with the output of the same command and -vv";
    /// A system call that was made inside the target failed.
    REMOTE_CALL = "VC-TRC-004", Internal, "please report it with the output of the same command and -vv";
    /// A mapping that can't be kept.
    MAPPING = "VC-MEM-001", Unsupported, "this kind of memory is not supported yet";
    /// A file behind a mapping differs.
    MAPPED_FILE_DIFFERS = "VC-MEM-002", Environment, "install the same version of the file as when the image was made";
    /// Memory could not be read or written.
    MEMORY_ACCESS = "VC-MEM-003", Internal, "please report it with the output of the same command and -vv";
    /// A System V segment can't be had.
    SEGMENT_TAKEN = "VC-MEM-005", Environment, "see ipcs -m: remove the segment with ipcrm -m, or end those who use it";
    /// The vdso of the image is not that of this kernel.
    VDSO_DIFFERS = "VC-MEM-004", Environment, "restore on a host with the same kernel";
    /// The image needs a processor feature.
    PROCESSOR_FEATURE = "VC-CPU-001", Environment, "restore on a host whose processor has the feature";
    /// A descriptor of a kind that is not supported.
    DESCRIPTOR_KIND = "VC-FD-001", Unsupported, "this kind of descriptor is not supported yet: close it before the dump";
    /// A file is missing or another one.
    FILE_DIFFERS = "VC-FD-002", Environment, "put the file back as it was when the image was made";
    /// A descriptor could not be made again.
    DESCRIPTOR_RESTORE = "VC-FD-003", Environment, "look at the path or address that the message names";
    /// An io_uring in a state that can't be kept.
    RING = "VC-URING-001", Unsupported, "let the program finish its requests before the dump, or start it without io_uring (Node.js: UV_USE_IO_URING=0)";
    /// There is no terminal to restore onto.
    NO_TERMINAL = "VC-TTY-001", Environment, "run vckpt restore on a terminal, without --detach and with its input not redirected";
    /// A socket in a state that is not supported.
    SOCKET_STATE = "VC-NET-001", Unsupported, "close the connection before the dump";
    /// An address is not to be had.
    ADDRESS_TAKEN = "VC-NET-003", Environment, "end whoever uses the address, or restore on the host that has it";
    /// Nobody is there whom a socket is to be connected with again.
    PEER_MISSING = "VC-NET-004", Environment, "start the service that receives there first, or dump with --external close";
    /// The host refuses something for want of a privilege.
    PRIVILEGE = "VC-HOST-001", Host, "run vckpt as root";
    /// The host lacks something.
    HOST_FEATURE = "VC-HOST-002", Host, "a newer kernel or another configuration is needed";
    /// State of a task that can't be kept.
    TASK_STATE = "VC-TASK-001", Unsupported, "this state is not supported yet";
    /// State of a task that could not be set again.
    TASK_RESTORE = "VC-TASK-002", Environment, "look at the reason that the kernel gave";
    /// The image file can't be opened.
    IMAGE_OPEN = "VC-IMG-001", Transfer, "check the path and its permissions";
    /// The file is not an image, or it is damaged.
    IMAGE_BAD = "VC-IMG-002", Image, "make the image again: this one can't be trusted";
    /// The image is of a newer format.
    IMAGE_NEWER = "VC-IMG-003", Image, "use the version of vckpt that wrote it, or a newer one";
    /// The image can't be written.
    IMAGE_WRITE = "VC-IMG-004", Transfer, "check the free space and the permissions of the directory";
    /// There is no such image, or no such folder for one.
    IMAGE_MISSING = "VC-IMG-006", Usage, "check the path";
    /// The image's name is taken.
    IMAGE_EXISTS = "VC-IMG-005", Usage, "choose another name with -o, or remove the file first";
}

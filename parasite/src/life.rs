//! What the stub does from its first to its last instruction: get a socket, serve it, and leave as its mode says.
//!
//! Not the serving itself ([`crate::serve`]) and not the first instructions (the entry, only in the stub).
#![allow(unsafe_code, reason = "works on the boot page that the supervisor made, and leaves by rt_sigreturn")]

use crate::protocol::{Boot, epitaph, mode};
use crate::serve::{Area, Ending, serve};
use crate::sys::{self, CLOSE_ON_EXEC, error_of, number};

/// The exit status of a puppet whose supervisor is gone.
pub const ORPHAN_STATUS: u8 = 125;

/// The whole life of a stub on this boot page. `entry` is the address at which further tasks of the stub start.
///
/// # Safety
/// `boot` must be the boot page of a whole area (see [`Area::of`]) that no other task uses; `entry` the start of the
/// stub; [`Boot::home`] 0 or as described there. The caller's stack and registers are not returned to.
pub unsafe extern "C" fn live(boot: *mut Boot, entry: u64) -> ! {
    // SAFETY: the caller's promise is the same.
    let area = unsafe { Area::of(boot) };
    if !area.is_prepared() {
        // Nothing here can be trusted, not even which way of leaving does no harm.
        sys::stay();
    }
    match area.mode() {
        mode::AGENT => agent(area, entry),
        mode::PUPPET | mode::PUPPET_THREAD => {
            let _ = serve(area, entry);
            sys::exit_group(u64::from(ORPHAN_STATUS));
        }
        _ => sys::stay(),
    }
}

/// The life of an agent. Its first system call is the `socketpair`: the supervisor watches for its end.
fn agent(area: Area, entry: u64) -> ! {
    const UNIX: u64 = 1;
    const SEQUENCED_PACKETS: u64 = 5;
    let arguments = [UNIX, SEQUENCED_PACKETS | CLOSE_ON_EXEC, 0, area.socket_pair_address(), 0, 0];
    // SAFETY: the kernel writes two descriptors to the two adjacent fields of the boot page made for them.
    let result = unsafe { sys::call(number::SOCKETPAIR, arguments) };
    if let Some(error) = error_of(result) {
        area.write_epitaph(Ending { epitaph: epitaph::NO_SOCKET, detail: error });
    } else {
        sys::close(area.peer());
        area.set_peer(-1);
        let _ = serve(area, entry);
        // A process that this agent spawned has no home: only the task itself may go there.
        if area.mode() != mode::AGENT {
            sys::exit_group(u64::from(ORPHAN_STATUS));
        }
        sys::close(area.socket());
    }
    let home = area.home();
    if home == 0 {
        sys::stay();
    }
    // SAFETY: `Boot::home` is by its definition such a stack pointer, and nothing is left to be done here.
    unsafe { sys::go_home(home) }
}

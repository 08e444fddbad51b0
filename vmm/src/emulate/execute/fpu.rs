//! x87 and SSE control (SDM vol. 1, chapters 8 and 10; vol. 2A). Arithmetic is done at ring 3, where no emulator is.

use iced_x86::{OpKind, Register};

use crate::emulate::area::{Area, legacy};
use crate::emulate::cpu::control;
use crate::emulate::exception::{DEVICE_NOT_AVAILABLE, Exception, FLOATING_POINT};
use crate::emulate::linear::{Access, Trouble};
use crate::emulate::step::Step;

/// FSW: an exception that is not masked is pending.
const ERROR_SUMMARY: u16 = 1 << 7;
/// FCW after FNINIT: every exception masked, 64-bit precision.
const FCW_INIT: u16 = 0x37f;
/// What FCW can hold, and the bit that is always set in it.
const FCW_BITS: u16 = 0x1f3f;
const FCW_ALWAYS: u16 = 0x40;
/// What FNCLEX clears of FSW: exceptions, SF, ES, B.
const FSW_EXCEPTIONS: u16 = 0x80ff;

fn not_available() -> Trouble {
    Exception::fault(DEVICE_NOT_AVAILABLE).into()
}

/// Whether the x87 may be used.
fn check(step: &Step<'_>) -> Result<(), Trouble> {
    let blocked = step.cpu.sregs.cr0 & (control::CR0_EM | control::CR0_TS) != 0;
    if blocked { Err(not_available()) } else { Ok(()) }
}

/// WAIT: reports an exception that is pending.
pub(super) fn wait(step: &Step<'_>) -> Result<(), Trouble> {
    let both = control::CR0_MP | control::CR0_TS;
    if step.cpu.sregs.cr0 & both == both {
        return Err(not_available());
    }
    let area = Area::of(&*step.beyond.xsave()?);
    report_pending(step, &area)
}

fn report_pending(step: &Step<'_>, area: &Area) -> Result<(), Trouble> {
    match area.u16_at(legacy::FSW) & ERROR_SUMMARY != 0 {
        false => Ok(()),
        true if step.cpu.sregs.cr0 & control::CR0_NE != 0 => {
            Err(Exception::fault(FLOATING_POINT).into())
        }
        // Through the PIC, as a PC/AT reported it: nobody has done that for decades.
        true => Err(Trouble::Unknown),
    }
}

/// Makes the first register the top of the stack. Values stay in their registers, of which the area shows the top first.
fn reset_top(area: &mut Area) {
    let status = area.u16_at(legacy::FSW);
    let top = usize::from(status >> 11 & 7);
    area.bytes_mut(legacy::ST..legacy::XMM).rotate_right(16 * top);
    area.set_u16_at(legacy::FSW, status & !(7 << 11));
}

pub(super) fn fninit(step: &mut Step<'_>) -> Result<(), Trouble> {
    check(step)?;
    let mut area = Area::of(&*step.beyond.xsave()?);
    reset_top(&mut area);
    area.set_u16_at(legacy::FCW, FCW_INIT);
    area.set_u16_at(legacy::FSW, 0);
    // The tags are kept in one byte: none is in use.
    area.set_u16_at(legacy::FTW, 0);
    area.bytes_mut(legacy::FOP..legacy::MXCSR).fill(0);
    area.mark_used(legacy::X87);
    step.beyond.set_xsave(&area.into_kvm())
}

pub(super) fn fnclex(step: &mut Step<'_>) -> Result<(), Trouble> {
    check(step)?;
    let mut area = Area::of(&*step.beyond.xsave()?);
    let status = area.u16_at(legacy::FSW);
    area.set_u16_at(legacy::FSW, status & !FSW_EXCEPTIONS);
    area.mark_used(legacy::X87);
    step.beyond.set_xsave(&area.into_kvm())
}

pub(super) fn fldcw(step: &mut Step<'_>) -> Result<(), Trouble> {
    check(step)?;
    let mut area = Area::of(&*step.beyond.xsave()?);
    report_pending(step, &area)?;
    let wanted = step.read(0)? as u16 & FCW_BITS | FCW_ALWAYS;
    area.set_u16_at(legacy::FCW, wanted);
    // An exception that was masked may be pending now.
    let status = area.u16_at(legacy::FSW);
    let pending = status & !wanted & 0x3f != 0;
    let status = status & !(ERROR_SUMMARY | 1 << 15);
    area.set_u16_at(legacy::FSW, if pending { status | ERROR_SUMMARY | 1 << 15 } else { status });
    area.mark_used(legacy::X87);
    step.beyond.set_xsave(&area.into_kvm())
}

pub(super) fn fnstcw(step: &mut Step<'_>) -> Result<(), Trouble> {
    check(step)?;
    let control = Area::of(&*step.beyond.xsave()?).u16_at(legacy::FCW);
    step.write(0, control.into())
}

pub(super) fn fnstsw(step: &mut Step<'_>) -> Result<(), Trouble> {
    check(step)?;
    let status = Area::of(&*step.beyond.xsave()?).u16_at(legacy::FSW);
    match step.instruction.op_kind(0) {
        OpKind::Register => step.cpu.set(Register::AX, status.into()).ok_or(Trouble::Unknown),
        _ => step.write(0, status.into()),
    }
}

/// As every instruction of MMX, it resets the top of the stack (SDM vol. 1, 9.5.1).
pub(super) fn emms(step: &mut Step<'_>) -> Result<(), Trouble> {
    if step.cpu.sregs.cr0 & control::CR0_EM != 0 {
        return Err(Exception::invalid_opcode().into());
    }
    check(step)?;
    let mut area = Area::of(&*step.beyond.xsave()?);
    report_pending(step, &area)?;
    reset_top(&mut area);
    area.set_u16_at(legacy::FTW, 0);
    area.mark_used(legacy::X87);
    step.beyond.set_xsave(&area.into_kvm())
}

/// Whether SSE may be used.
fn check_sse(step: &Step<'_>) -> Result<(), Trouble> {
    let sregs = &step.cpu.sregs;
    if sregs.cr0 & control::CR0_EM != 0 || sregs.cr4 & control::CR4_OSFXSR == 0 {
        return Err(Exception::invalid_opcode().into());
    }
    if sregs.cr0 & control::CR0_TS != 0 {
        return Err(not_available());
    }
    Ok(())
}

pub(super) fn ldmxcsr(step: &mut Step<'_>) -> Result<(), Trouble> {
    check_sse(step)?;
    let mut raw = [0; 4];
    step.memory.read(step.address()?, &mut raw, Access::Read)?;
    let mut area = Area::of(&*step.beyond.xsave()?);
    area.set_mxcsr(u32::from_le_bytes(raw))?;
    area.mark_used(legacy::SSE);
    step.beyond.set_xsave(&area.into_kvm())
}

pub(super) fn stmxcsr(step: &mut Step<'_>) -> Result<(), Trouble> {
    check_sse(step)?;
    let area = Area::of(&*step.beyond.xsave()?);
    step.memory.write(step.address()?, area.bytes(legacy::MXCSR..legacy::MXCSR + 4))
}

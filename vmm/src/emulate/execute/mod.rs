//! What each instruction does, by family: what compiled kernel code is made of, and what `KVM` has no emulation for.
//!
//! An operation finds RIP behind the instruction. It changes nothing before everything that can fault has been done, since
//! nobody restores registers after a fault: memory comes first, then registers and flags. Strings alone show how far they
//! came.

mod arithmetic;
mod bits;
mod control;
mod exchange;
mod flags;
mod flow;
mod fpu;
mod integer;
mod logic;
mod movement;
mod random;
mod shift;
mod stack;
mod string;
mod trap;
mod xstate;

use iced_x86::Mnemonic;

use super::linear::Trouble;
use super::step::Step;

/// Carries an instruction out. RIP is the next one's when it begins.
///
/// # Errors
/// It raises an exception, or is not known.
#[inline]
pub(super) fn execute(step: &mut Step<'_>) -> Result<(), Trouble> {
    match integer::execute(step) {
        Err(Trouble::Unknown) => rare(step),
        done => done,
    }
}

/// What only the parts of a kernel do that know the processor.
#[cold]
fn rare(step: &mut Step<'_>) -> Result<(), Trouble> {
    match step.instruction.mnemonic() {
        Mnemonic::Cmpxchg8b => exchange::cmpxchg8b(step),
        Mnemonic::Cmpxchg16b => exchange::cmpxchg16b(step),

        Mnemonic::Popcnt => bits::popcnt(step),
        Mnemonic::Lzcnt => bits::lzcnt(step),
        Mnemonic::Tzcnt => bits::tzcnt(step),
        Mnemonic::Andn => bits::andn(step),
        Mnemonic::Bextr => bits::bextr(step),
        Mnemonic::Blsi => bits::blsi(step),
        Mnemonic::Blsmsk => bits::blsmsk(step),
        Mnemonic::Blsr => bits::blsr(step),
        Mnemonic::Bzhi => bits::bzhi(step),
        Mnemonic::Pdep => bits::pdep(step),
        Mnemonic::Pext => bits::pext(step),
        Mnemonic::Rorx => bits::rorx(step),
        Mnemonic::Sarx => bits::sarx(step),
        Mnemonic::Shlx => bits::shlx(step),
        Mnemonic::Shrx => bits::shrx(step),
        Mnemonic::Mulx => bits::mulx(step),
        Mnemonic::Adcx => bits::adcx(step),
        Mnemonic::Adox => bits::adox(step),
        Mnemonic::Crc32 => bits::crc32(step),
        Mnemonic::Movbe => bits::movbe(step),

        Mnemonic::Int3 => trap::int3(),
        Mnemonic::Int1 => trap::int1(),
        Mnemonic::Int => trap::int(step),
        Mnemonic::Iretq => trap::iretq(step),
        Mnemonic::Ud0 | Mnemonic::Ud1 | Mnemonic::Ud2 => trap::undefined(),

        Mnemonic::Wait => fpu::wait(step),
        Mnemonic::Fninit => fpu::fninit(step),
        Mnemonic::Fnclex => fpu::fnclex(step),
        Mnemonic::Fldcw => fpu::fldcw(step),
        Mnemonic::Fnstcw => fpu::fnstcw(step),
        Mnemonic::Fnstsw => fpu::fnstsw(step),
        Mnemonic::Emms => fpu::emms(step),
        Mnemonic::Ldmxcsr | Mnemonic::Vldmxcsr => fpu::ldmxcsr(step),
        Mnemonic::Stmxcsr | Mnemonic::Vstmxcsr => fpu::stmxcsr(step),

        Mnemonic::Xgetbv => xstate::xgetbv(step),
        Mnemonic::Xsetbv => xstate::xsetbv(step),
        Mnemonic::Xsave | Mnemonic::Xsave64 => xstate::xsave(step),
        Mnemonic::Xsaveopt | Mnemonic::Xsaveopt64 => xstate::xsave(step),
        Mnemonic::Xsavec | Mnemonic::Xsavec64 => xstate::xsavec(step),
        Mnemonic::Xsaves | Mnemonic::Xsaves64 => xstate::xsaves(step),
        Mnemonic::Xrstor | Mnemonic::Xrstor64 => xstate::xrstor(step),
        Mnemonic::Xrstors | Mnemonic::Xrstors64 => xstate::xrstors(step),

        Mnemonic::Rdrand | Mnemonic::Rdseed => random::random(step),

        Mnemonic::Clac => control::access_check(step, false),
        Mnemonic::Stac => control::access_check(step, true),
        Mnemonic::Rdfsbase => control::read_base(step, control::Base::Fs),
        Mnemonic::Rdgsbase => control::read_base(step, control::Base::Gs),
        Mnemonic::Wrfsbase => control::write_base(step, control::Base::Fs),
        Mnemonic::Wrgsbase => control::write_base(step, control::Base::Gs),
        Mnemonic::Swapgs => control::swapgs(step),
        Mnemonic::Mov => control::mov(step),
        Mnemonic::Cpuid => control::cpuid(step),
        Mnemonic::Rdtsc => control::rdtsc(step),
        Mnemonic::Rdtscp => control::rdtscp(step),
        Mnemonic::Rdpid => control::rdpid(step),
        Mnemonic::Wrmsr => control::wrmsr(step),
        Mnemonic::Invpcid => control::invpcid(step),
        // They order or hint, and an exit from the guest orders everything.
        Mnemonic::Lfence
        | Mnemonic::Mfence
        | Mnemonic::Sfence
        | Mnemonic::Serialize
        | Mnemonic::Pause
        | Mnemonic::Endbr64
        | Mnemonic::Endbr32
        | Mnemonic::Nop
        | Mnemonic::Prefetchw
        | Mnemonic::Prefetchwt1
        | Mnemonic::Prefetchnta
        | Mnemonic::Prefetcht0
        | Mnemonic::Prefetcht1
        | Mnemonic::Prefetcht2
        | Mnemonic::Cldemote => Ok(()),
        Mnemonic::Clflush | Mnemonic::Clflushopt | Mnemonic::Clwb => control::clean_line(step),

        _ => Err(Trouble::Unknown),
    }
}

package VirtTest::Fuzz;

# Random programs over the whole API, run on the module and on a model of its contract at once: each step must do on
# one what it does on the other, line by line. Crashes and hangs are caught, what fails is reduced to a few steps.
#
# A program is a list of steps, plain data. A step is [NAME => arguments]. What it may contain:
#
#     label    the number of a watch; steps that name one that was never added do nothing
#     script   [[steps], end, number]: what a callback or method does, and whether it returns ('return'), throws 'boom
#              number' or an object of that number, or leaves by 'next'
#     ops      [[NAME => label or 'self', value], [call => script]]: what a callback or free function in C does
#
# See do_NAME in VirtTest::Fuzz::Model for what each means.

use strict;
use warnings;

use Data::Dumper ();
use Exporter qw(import);
use VirtTest::Child;
use VirtTest::Fuzz::Generator;
use VirtTest::Fuzz::Model;

our @EXPORT_OK = qw(run_seed run_program reduced listing replay);

# Shrinking a program that hangs would take for ever.
use constant MAX_REDUCING => 120;

# Runs a program made of the seed, in a child. Returns a hash: steps, how many there were; seen, the kinds of lines in
# its trace, counted; failure, if it failed, a hash of kind, text and program. Option: model, the class.
sub run_seed {
    my ($seed, $steps, %opt) = @_;
    my $result = result_of(sub { compare($opt{model}, generated($seed, $steps)) });
    my $failure = $result->{failure} or return $result;
    my @program = program_of($seed, $steps, $opt{model});
    splice @program, $result->{steps} if $result->{steps};
    $failure->{program} = \@program;
    return $result;
}

# The same for a program that is there.
sub run_program {
    my ($program, %opt) = @_;
    my @steps = @$program;
    my $result = result_of(sub { compare($opt{model}, sub { shift @steps }) });
    $result->{failure}{program} = $program if $result->{failure};
    return $result;
}

# An iterator over the steps, to be run on a model as they come.
sub generated {
    my ($seed, $steps) = @_;
    my ($left, $generator) = ($steps);
    return sub {
        my ($model) = @_;
        $generator ||= VirtTest::Fuzz::Generator->new($seed, $model);
        return $left-- == $steps ? $generator->new_loop : $left >= 0 ? $generator->step : undef;
    };
}

sub model_of { my ($class) = @_; return ($class || 'VirtTest::Fuzz::Model')->new }

sub program_of {
    my ($seed, $steps, $class) = @_;
    my $next  = generated($seed, $steps);
    my $model = model_of($class);
    my @program;
    while (my $step = $next->($model)) {
        push @program, $step;
        $model->run($step);
    }
    return @program;
}

# In the child.
sub compare {
    my ($class, $next) = @_;
    require VirtTest::Fuzz::Subject;
    my $model   = model_of($class);
    my $subject = VirtTest::Fuzz::Subject->new;
    my %result  = (steps => 0, seen => {});
    while (my $step = $next->($model)) {
        $result{steps}++;
        return \%result if $result{failure} = compare_step($model, $subject, $step, $result{seen});
    }
    $result{failure} = compare_step($model, $subject, ['finish'], $result{seen});
    return \%result;
}

# The first line that is not the expected one, or undef.
sub compare_step {
    my ($model, $subject, $step, $seen) = @_;
    my @expected = $model->run($step);
    my @got      = $subject->run($step);
    $seen->{ kind_of($_) }++ for @got;
    my $same = 0;
    $same++ while $same < @expected && $same < @got && $expected[$same] eq $got[$same];
    return undef if $same == @expected && $same == @got;
    my ($expected, $got) = map { $_->[$same] // 'nothing' } \@expected, \@got;
    return {
        kind => 'instead of ' . nameless($expected) . ': ' . nameless($got),
        text => join '', (map { "$_\n" } @got[0 .. $same - 1]), "expected: $expected\ngot:      $got\n",
    };
}

sub result_of {
    my ($code) = @_;
    my $result;
    return $result if eval { ($result) = in_child { $code->() }; 1 };
    return { failure => { kind => $@ =~ s/ at \S+ line .*//sr, text => "$@" } };
}

# What steps say is of the kind "add_handle: ok", other lines are of that of their first word, or of their method.
sub kind_of {
    my ($line) = @_;
    return $line =~ /\A(\w+: (?:ok|died)|c \w+|loop\d+ \w+|\w+)/ ? $1 =~ s/\Aloop\d+ //r : 'other';
}

# A line without the names in it.
sub nameless {
    my ($line) = @_;
    $line =~ s/\bloop\d+//g;
    $line =~ s/object \S+|\d+(?:\.\d+)?/N/g;
    return join ' ', grep { defined } (split ' ', $line)[0 .. 3];
}

# The failure of a program without the steps that it takes no part in: chunks are left out as long as it fails in the
# same way, from halves down to single steps, then what is in the steps.
sub reduced {
    my ($failure, %opt) = @_;
    my $end = time + MAX_REDUCING;
    my $fails = sub {
        my ($program) = @_;
        my $other = run_program($program, %opt)->{failure};
        return $other && $other->{kind} eq $failure->{kind} ? $other : undef;
    };
    my $smallest = $fails->($failure->{program}) or return $failure;
    my $shrink = sub {
        my ($variants) = @_;
        my $before = $smallest;
        while (time < $end and my $candidate = $variants->($smallest->{program})) {
            $smallest = $fails->($candidate) || $smallest;
        }
        return $smallest != $before;
    };
    while ($shrink->(without_chunks()) + $shrink->(without_parts())) { }
    return $smallest;
}

# An iterator over the lists that lack a chunk of the list that it is given, which may get shorter meanwhile. Chunks are
# taken from the end, where steps depend on others, to the beginning.
sub without_chunks {
    my ($size, $end);
    return sub {
        my ($steps) = @_;
        $size //= @$steps;
        $end = @$steps if !defined $end || $end > @$steps;
        if ($end <= 0) {
            return undef if $size <= 1;
            ($size, $end) = (int($size / 2), scalar @$steps);
        }
        my @shorter = @$steps;
        my $start = $end > $size ? $end - $size : 0;
        splice @shorter, $start, $end - $start;
        $end = $start;
        return \@shorter;
    };
}

# The same over the lists in which a list of steps or ops inside a step lacks one of its members.
sub without_parts {
    my $n = 0;
    return sub {
        my ($steps) = @_;
        my $copy  = copy_of($steps);
        my @lists = lists_in($copy);
        my $skip  = $n++;
        for my $list (@lists) {
            if ($skip < @$list) {
                splice @$list, $skip, 1;
                return $copy;
            }
            $skip -= @$list;
        }
        return undef;
    };
}

sub copy_of { my ($data) = @_; return ref $data ? [map { copy_of($_) } @$data] : $data }

# Lists of lists, all but the outermost.
sub lists_in {
    my ($data) = @_;
    return map { ((grep { @$_ && !grep { !ref } @$_ } $_), lists_in($_)) } grep { ref } @$data;
}

# For replay: a step a line.
sub listing {
    my ($steps) = @_;
    return map { Data::Dumper->new([$_])->Indent(0)->Terse(1)->Useqq(1)->Dump . ",\n" } @$steps;
}

# Runs a program as listed in a file, or on stdin; it may have been cut out of a test's output.
sub replay {
    my @program = eval '(' . join('', map { s/\A#\s*//r } <>) . ')';
    die $@ if $@;
    my $failure = run_program(\@program)->{failure};
    print $failure ? "$failure->{kind}\n$failure->{text}" : "No difference\n";
    return;
}

1;

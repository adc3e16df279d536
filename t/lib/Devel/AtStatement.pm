package Devel::AtStatement;

# perl -d:AtStatement: Devel::AtStatement::call($n, $pattern, $code) has $code called before the nth of the statements
# that are run from now on, of those in files whose names match. left() tells how many of the n have not come yet.

use strict;
use warnings;

my ($left, $pattern, $code) = (0);

sub call { ($left, $pattern, $code) = @_; return }
sub left { return $left }

package    # perl's own
    DB;

sub DB { $left && (caller)[1] =~ $pattern && !--$left && $code->() }

1;
